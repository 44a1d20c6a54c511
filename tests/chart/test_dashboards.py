"""Dashboards: what Grafana imports, over metrics that exist, in expressions that Prometheus parses."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "charts" / "forkcast" / "files" / "dashboards").glob("*.json"))
ALERTS = ROOT / "charts" / "forkcast" / "files" / "alerts" / "forkcast.yaml"
PAGE = (ROOT / "docs" / "metrics.md").read_text()
#: Metrics by name, with their type and labels, as the page has them.
TABLE = {
    name: (kind, tuple(filter(None, labels.replace(" ", "").split(","))))
    for name, kind, labels in re.findall(
        r"^\| `(forkcast_\w+)` \| (\w+) \| ([^|]*)\|", PAGE, re.MULTILINE
    )
}
REGISTRIES = ("forkcast_monitor.metrics", "forkcast_proxy.metrics", "forkcast_operator.kubernetes.metrics")  # fmt: skip


def _expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        board = json.loads(path.read_text())
        return [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def _metrics(expression: str) -> set[str]:
    """The metrics an expression reads; a histogram's series count as the histogram."""
    names = set(re.findall(r"\bforkcast_\w+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_files_are_what_the_script_writes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_dashboards.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_dashboard_is_whole(path):
    board = json.loads(path.read_text())
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["uid"] == path.stem
    assert board["title"]
    assert board["schemaVersion"] >= 36
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in [panel, *panel["targets"]]:
            assert target["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            for name in re.findall(r"\$(\w+)", target["expr"]):
                assert name in variables or name.startswith("__")


def test_uids_are_distinct():
    uids = [json.loads(path.read_text())["uid"] for path in FILES]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("path", [*FILES, ALERTS], ids=lambda p: p.stem)
def test_only_metrics_that_exist(path):
    for expression in _expressions(path):
        names = _metrics(expression)
        assert names, expression
        assert names <= TABLE.keys(), expression


@pytest.mark.parametrize("path", [*FILES, ALERTS], ids=lambda p: p.stem)
def test_only_labels_that_exist(path):
    """Labels in selectors and in `by` belong to a metric of the expression, or to the target."""
    for expression in _expressions(path):
        allowed = {"instance", "job", "le"}
        for name in _metrics(expression):
            allowed |= set(TABLE[name][1])
        selectors = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
        grouped = [
            one.strip()
            for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
            for one in group.split(",")
            if one.strip()
        ]
        assert {*selectors, *grouped} <= allowed, expression


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_prometheus_parses_every_expression(promtool, tmp_path, path):
    plain = [
        e.replace("$__rate_interval", "5m").replace("$__range", "6h") for e in _expressions(path)
    ]
    rules = [{"record": f"panel:{n}", "expr": expression} for n, expression in enumerate(plain)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", REGISTRIES)
def test_the_page_is_what_a_service_registers(module):
    parent = module.rpartition(".")[0]
    if importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not part of this tree")
    registry = importlib.import_module(module).REGISTRY
    service = module.split(".", maxsplit=1)[0].removeprefix("forkcast_")
    registered = {}
    for collector in list(registry._collector_to_names):
        name = collector._name + ("_total" if collector._type == "counter" else "")
        registered[name] = (collector._type, tuple(collector._labelnames))
    others = ("operator", "proxy")
    on_page = {
        name: facts
        for name, facts in TABLE.items()
        if (
            name.startswith(f"forkcast_{service}_")
            if service in others
            else not name.startswith(tuple(f"forkcast_{one}_" for one in others))
        )
    }
    assert registered == on_page


@pytest.mark.parametrize("module", REGISTRIES)
def test_no_series_tells_when_a_counter_was_made(module):
    """They would be as many as the counters, and nothing reads them."""
    metrics = importlib.import_module(module)
    if declare := getattr(metrics, "declare", None):
        declare()
    text = generate_latest(metrics.REGISTRY).decode()
    assert "_total" in text
    assert "_created" not in text
