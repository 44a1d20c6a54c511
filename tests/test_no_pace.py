"""No test's verdict hangs on how fast the machine is: tests look at no clock, sleep nowhere and set no
bound of their own to a wait. What a test waits for, it waits for with tests/waiting.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import HANG_SECONDS

TESTS = Path(__file__).parent
_CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time", "getrusage"}
#: Calls whose first argument or `timeout` bounds a wait, seconds.
_BOUNDED = {"wait", "join", "result", "communicate", "acquire", "timeout", "wait_for", "run"}
#: By file and function: why it may.
ALLOWED = {
    "chart/live.py::Trainer._report": "how fast it reports is part of what is scraped",
    "loop/slow_disk/sitecustomize.py::_slow": "the slow disk",
    "loop/storm.py::Storm.calm": "a script's own bound: it is started without pytest, too",
    "loop/storm.py::Storm.rage": "when it kills",
    "loop/storm.py::storm": "a figure that is shown",
    "monitor/conftest.py::Talker.talk": "a trainer's pause before it connects again",
    "operator/cluster/stage.py::SmallMonitor.WatchTriggers": "how soon it sees that nobody watches",
    "operator/cluster/test_node_lost.py::Kubelet._beats": "how often a kubelet says that it is there",
    "operator/cluster/test_silent_store.py::_edited": "a figure that is shown",
    "operator/cluster/test_silent_store.py::_measure": "a figure that is shown",
    "s3_gateway.py::_Handler._break": "the answer that comes drop by drop",
    "trainer/ends.py::end": "a script's own wait: it is started without pytest, too",
}


def _paced(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, enclosing functions, what is wrong)."""
    numbers = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, int | float)
    }

    def number(node: ast.expr | None) -> float:
        if isinstance(node, ast.Name):
            return numbers.get(node.id, 0)
        value = node.value if isinstance(node, ast.Constant) else 0
        return value if isinstance(value, int | float) else 0

    def look(node: ast.AST, place: str) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}".strip(".")
        if isinstance(node, ast.Call):
            yield from ((node.lineno, place, what) for what in wrong(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (
                (node.lineno, place, f"{found}: HANG_OPTION is the bound")
                for found in re.findall(r"^--timeout=?\d*\w*$", node.value)
            )
        for child in ast.iter_child_nodes(node):
            yield from look(child, place)

    def wrong(call: ast.Call) -> Iterator[str]:
        owner, _, name = ast.unparse(call.func).rpartition(".")
        first = call.args[0] if call.args else None
        of_a_clock = owner in ("time", "resource") or owner.endswith(("loop", "loop()"))
        if of_a_clock and name.removesuffix("_ns") in _CLOCKS:
            yield f"{owner}.{name}(): no test looks at a clock"
        if name == "sleep" and not (isinstance(first, ast.Constant) and first.value == 0):
            yield "sleep: wait for what has to come about"
        if name == "setattr" and first is not None and ast.unparse(first).endswith(".time"):
            yield "setattr: a clock of the module's own; others in this process read this one, too"
        bounds = [one.value for one in call.keywords if one.arg == "timeout"]
        if name in _BOUNDED:
            bounds += call.args[:1] if name != "wait_for" else call.args[1:2]
        if any(0 < number(one) < HANG_SECONDS for one in bounds):
            yield f"{name}: HANG_SECONDS is the bound of every wait"

    yield from look(tree, "")


def _found() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        name = str(path.relative_to(TESTS))
        if name == "waiting.py":
            continue
        for line, place, what in _paced(ast.parse(path.read_text())):
            found.setdefault(f"{name}::{place}", []).append(f"line {line}: {what}")
    return found


def test_no_test_looks_at_a_clock_sleeps_or_bounds_a_wait_by_itself() -> None:
    found = _found()
    assert {place: what for place, what in found.items() if place not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "no longer needed"


@pytest.mark.parametrize(
    "code",
    [
        "assert time.monotonic() - began < 5",
        "assert time.perf_counter_ns() < 5",
        "time.sleep(0.1)",
        "await asyncio.sleep(SOON)",
        "process.wait(30)",
        "SECONDS = 60\nprocess.communicate(timeout=SECONDS)",
        "async with asyncio.timeout(10): pass",
        "kubectl('wait', 'job/a', '--timeout=60s')",
        "monkeypatch.setattr(orders.time, 'monotonic', clock)",
    ],
)
def test_a_verdict_on_pace_is_seen(code: str) -> None:
    assert list(_paced(ast.parse(code)))


def test_waiting_as_long_as_it_takes_is_none() -> None:
    code = "await asyncio.sleep(0); process.wait(HANG_SECONDS); stop.wait(0); until(f, 'it')"
    assert not list(_paced(ast.parse(code)))
