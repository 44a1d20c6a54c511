"""The short scenario with a part killed at an enumerated call point, once for each point.

Three points run by default, all of them with ``pytest -m "" tests/loop/test_kill_points.py``. The
list is kill_points.txt; the run without faults says which points there are, and fails where one of
them is not in the list.
"""

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from short_run import BRANCH, check, start, substance, to_the_end

from tests.waiting import until

POINTS = [
    "/".join(line.split())
    for line in (Path(__file__).parent / "kill_points.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
BY_DEFAULT = (
    "operator/after-put:branches.decision/1",
    "trainer/after-adopt/1",
    "rollout/before-put:rollouts.trial/1",
)


@pytest.fixture(scope="session")
def fault_free(tmp_path_factory):
    """(the decision, the call points reached) of the scenario without a fault."""
    folder = tmp_path_factory.mktemp("fault-free")
    log = folder / "points"
    to_the_end(folder, FORKCAST_CRASH_LOG=str(log))
    return check(folder / "w"), [line.split() for line in log.read_text().splitlines()]


def test_the_scenario_branches_and_adopts(fault_free):
    decision, _ = fault_free
    assert decision.applied
    assert decision.outcome.adopts


def test_every_call_point_is_in_the_list(fault_free):
    listed = {tuple(point.split("/")[:2]) for point in POINTS}
    assert {(component, point) for component, point, _ in fault_free[1]} <= listed
    assert set(BY_DEFAULT) < set(POINTS)


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, marks=() if p in BY_DEFAULT else pytest.mark.faults) for p in POINTS],
)
def test_a_part_killed_at_a_call_point_changes_nothing_but_time(tmp_path, fault_free, point):
    marker = tmp_path / "died"
    to_the_end(tmp_path, FORKCAST_CRASH=f"{point}:{marker}")
    assert marker.exists(), "the point was never reached"
    assert substance(check(tmp_path / "w")) == substance(fault_free[0])


def rounds(count):
    """The first occurrence of every point, dealt out so that each part dies a few times a round."""
    dealt = [[] for _ in range(count)]
    for part in dict.fromkeys(point.split("/")[0] for point in POINTS):
        firsts = [p for p in POINTS if p.startswith(f"{part}/") and p.endswith("/1")]
        for number, point in enumerate(firsts):
            dealt[number % count].append(point)
    return dealt


@pytest.mark.faults
@pytest.mark.parametrize("points", rounds(10), ids=lambda points: f"{len(points)}-deaths")
def test_many_deaths_in_one_run_change_nothing_but_time(tmp_path, fault_free, points):
    markers = {point: tmp_path / f"died-{number}" for number, point in enumerate(points)}
    to_the_end(tmp_path, FORKCAST_CRASH=";".join(f"{p}:{m}" for p, m in markers.items()))
    assert [point for point in points if not markers[point].exists()] == []
    assert substance(check(tmp_path / "w")) == substance(fault_free[0])


def test_forkcast_run_itself_killed_in_mid_branch_and_run_again(tmp_path, fault_free):
    first = start(tmp_path)
    draft = tmp_path / "w/branches" / BRANCH / "draft.json"
    until(lambda: draft.exists() or first.poll() is not None, "the draft")
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    to_the_end(tmp_path)
    assert substance(check(tmp_path / "w")) == substance(fault_free[0])
    assert json.loads((tmp_path / "w/attempts.json").read_text()) == 1
