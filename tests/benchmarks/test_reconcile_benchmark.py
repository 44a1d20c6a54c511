"""The operator's benchmark: what it needs, how it reads histogram and audit log, and the names."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_without_a_cluster_command_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "reconcile.py", "--json", tmp_path / "x.json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CLUSTER": str(tmp_path / "none")},
    )
    assert done.returncode == 1
    assert "no cluster command" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_no_benchmark_has_the_name_of_a_module_of_the_standard_library():
    """Python looks beside a script first: such a name would be imported in its place."""
    assert [
        one.name for one in BENCHMARKS.glob("*.py") if one.stem in sys.stdlib_module_names
    ] == []


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import api_server
    import reconcile_process

    return api_server, reconcile_process


def test_a_quantile_is_of_what_came_between_two_scrapes(modules):
    quantile = modules[1].histogram_quantile
    before = {0.1: 5.0, 1.0: 5.0, math.inf: 5.0}
    after = {0.1: 5.0, 1.0: 15.0, math.inf: 15.0}
    assert quantile(before, after, 0.5) == pytest.approx(0.55)
    assert quantile({}, {0.1: 0.0, math.inf: 3.0}, 0.5) == 0.1
    assert math.isnan(quantile(before, before, 0.5))


def test_calls_are_counted_once_by_user_and_time(modules, tmp_path):
    server = modules[0].ApiServer(tmp_path, {})
    (tmp_path / "logs").mkdir()

    def line(verb, stage, second, user="me", **about):
        return json.dumps(
            {
                "verb": verb,
                "stage": stage,
                "user": {"username": user},
                "objectRef": about,
                "requestReceivedTimestamp": f"1970-01-01T00:00:{second:02d}.500000Z",
            }
        )

    lines = [
        line("patch", "ResponseComplete", 10, resource="runs", subresource="status"),
        line("patch", "ResponseComplete", 30, resource="runs"),
        line("watch", "ResponseStarted", 11, resource="pods"),
        line("watch", "ResponseComplete", 12, resource="pods"),
        line("get", "ResponseComplete", 12, user="you", resource="pods"),
        '{"user":{"username":"me"',
    ]
    (tmp_path / "logs" / "audit.log").write_text("\n".join(lines))
    assert server.calls("me", 10.0, 20.0) == {("patch", "runs/status"): 1, ("watch", "pods"): 1}
