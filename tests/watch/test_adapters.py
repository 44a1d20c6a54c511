"""One suite over the adapters: a training as its users write it, in its own process, with and without
Forkcast. Nothing of it may differ; what is recorded is what the loop saw.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forkcast_wire.statistics import read_history
from tests.ports import free_port
from tests.waiting import HANG_SECONDS
from tests.watch.loops import CLIP, LOOPS

ROOT = Path(__file__).parents[2]
STEPS, NAN = 16, 13
NEEDS = {"accelerate": "accelerate", "trainer": "accelerate", "callback": "accelerate"}
NEEDS |= {"lightning": "lightning"}
ADAPTERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
            reason=f"{NEEDS.get(name)} is not installed; it is in the extra dev",
        ),
    )
    for name in LOOPS
]


def start(adapter, folder, *options, rank=0, world=1, port=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if world > 1:
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(port)}
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.watch.loops", adapter, str(folder), *options]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **output)


def ended(process, code=0):
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == code, out[-2000:] + err[-4000:]
    return (json.loads(out.splitlines()[-1]) if code == 0 else None), err


def train(adapter, folder, *options):
    return ended(start(adapter, folder, "--steps", str(STEPS), *options))


def same(one, other):
    """Bit for bit, NaN too."""
    return json.dumps(one) == json.dumps(other)


def rows_of(folder):
    return read_history(folder / "statistics")


def no_monitor_is_left(folder):
    import psutil

    where = str(folder)
    left = [one for one in psutil.process_iter(["cwd", "cmdline"]) if one.info["cwd"] == where]
    return not [one for one in left if "forkcast_monitor" in " ".join(one.info["cmdline"] or ())]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The training without Forkcast, by adapter and options."""
    known = {}

    def made(adapter, *options):
        key = (adapter, *options)
        if key not in known:
            known[key] = train(adapter, tmp_path_factory.mktemp("bare"), *options)[0]
        return known[key]

    return made


BASE = ("--accumulate", "2", "--nan", str(NAN))


@pytest.fixture(scope="module", params=ADAPTERS)
def watched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    found, err = train(request.param, folder, *BASE, "--watched")
    return request.param, folder, found, err


def test_losses_and_generators_are_those_of_the_training_without(watched, bare):
    adapter, _, found, _ = watched
    assert same(found, bare(adapter, *BASE))


def test_each_step_is_recorded_with_the_loss_that_the_loop_saw(watched):
    _, folder, found, _ = watched
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row, loss in zip(rows, found["losses"], strict=True):
        seen = math.nan if row["loss"] is None else row["loss"]
        assert seen == pytest.approx(loss, rel=1e-5, nan_ok=True)


def test_a_nan_is_recorded_at_its_step_and_is_an_event_there(watched):
    _, folder, _, err = watched
    finite = [row["loss"] is not None and math.isfinite(row["loss"]) for row in rows_of(folder)]
    assert finite.index(False) == NAN
    assert f"unstable at step {NAN}" in err
    recorded = [json.loads(path.read_text()) for path in (folder / "suppressed").glob("*.json")]
    assert NAN in [one["trigger"]["step"] for one in recorded]


def test_gradient_norms_before_and_after_clipping_are_of_the_whole_step(watched):
    _, folder, _, _ = watched
    for row in rows_of(folder)[:NAN]:
        assert row["grad_norm"] > 2 * CLIP
        assert row["grad_norm_clipped"] == pytest.approx(CLIP, rel=1e-3)
        assert row["learning_rate"] > 0
        assert not row["skipped"]


def test_the_sampled_statistics_are_there(watched):
    _, folder, _, _ = watched
    rows = rows_of(folder)
    assert set(rows[2]["group_grad_norms"]) >= {"attention", "mlp", "embedding", "norm"}
    assert 0 < rows[2]["update_ratio"] < 1
    assert rows[2]["rms_max"] > 0
    assert len(rows[3]["attention_entropy"]) == 2
    assert all(0 <= one <= 1 for one in rows[3]["attention_entropy"])
    assert rows[3]["attention_logit_max"] > -10
    assert not rows[1]["group_grad_norms"]


def test_an_evaluation_between_belongs_to_the_step_before_it(watched):
    adapter, folder, _, _ = watched
    taken = {row["step"] for row in rows_of(folder) if row["validation_loss"] is not None}
    assert taken == ({4, 9} if adapter in ("trainer", "callback", "lightning") else set())


def test_no_process_is_left_and_the_run_says_that_it_is_over(watched):
    _, folder, _, _ = watched
    assert no_monitor_is_left(folder)
    assert json.loads((folder / "progress.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("fate", ["killed", "stalled"])
def test_a_monitor_that_is_killed_or_stalled_changes_nothing(fate, bare, tmp_path):
    found, _ = train("plain", tmp_path / "run", *BASE, "--watched", "--monitor", fate)
    assert same(found, bare("plain", *BASE))
    if fate == "killed":  # it is started again, and has been waited for
        assert len(rows_of(tmp_path / "run")) == STEPS
    assert no_monitor_is_left(tmp_path / "run")


def test_bf16_autocast_is_watched_and_unchanged(bare, tmp_path):
    found, _ = train("plain", tmp_path / "run", "--bf16", "--watched")
    assert same(found, bare("plain", "--bf16"))
    assert len(rows_of(tmp_path / "run")) == STEPS


def test_workers_that_are_forked_beside_the_stream_change_nothing(bare, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed; it is in the extra dev")
    found, _ = train("trainer", tmp_path / "run", "--workers", "2", "--watched")
    assert same(found, bare("trainer", "--workers", "2"))
    assert len(rows_of(tmp_path / "run")) == STEPS


def test_a_resumed_training_goes_on_in_the_same_history(tmp_path):
    folder = tmp_path / "run"
    train("plain", folder, "--watched")
    train("plain", folder, "--watched", "--start", "12")
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(12 + STEPS))
    assert [row["attempt"] for row in rows] == [0] * 12 + [1] * STEPS
    assert len({row["run_uid"] for row in rows}) == 1


class TestTwoProcesses:
    """Data-parallel, gloo."""

    def both(self, folder, *options):
        port = free_port()
        command = ("--steps", str(STEPS), *options)
        place = {"world": 2, "port": port}
        return [start("plain", folder, *command, rank=rank, **place) for rank in range(2)]

    def test_rank_0_streams_the_mean_over_the_ranks_and_nothing_is_changed(self, tmp_path):
        bare = [ended(one)[0] for one in self.both(tmp_path / "bare")]
        found = [ended(one)[0] for one in self.both(tmp_path / "run", "--watched")]
        assert same(found, bare)
        rows = rows_of(tmp_path / "run")
        assert [row["rank"] for row in rows] == [0] * STEPS
        ours, theirs = (one["losses"] for one in found)
        assert ours != theirs
        means = [(a + b) / 2 for a, b in zip(ours, theirs, strict=True)]
        assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-5)
        attempts = json.loads((tmp_path / "run" / "attempts.json").read_text())
        assert attempts == 0

    def test_a_rank_that_dies_is_not_waited_for(self, tmp_path):
        """The loop's own sum over the ranks fails; what watches ends with it."""
        first, second = self.both(tmp_path / "run", "--watched", "--dies", "9")
        assert ended(second, 9)[0] is None
        _, err = ended(first, 1)
        assert "RuntimeError" in err
        assert no_monitor_is_left(tmp_path / "run")
