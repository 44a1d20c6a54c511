"""A trainer tells how many saves it has skipped; the counter rises by what is new."""

from __future__ import annotations

import pytest

from forkcast_monitor.metrics import REGISTRY, RunSeries


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ([(0, 0), (0, 0)], 0),
        ([(0, 1), (0, 1), (0, 3)], 3),  # told again and again
        ([(0, 3), (1, 0), (1, 2)], 5),  # a new attempt begins at none
        ([(0, 3), (1, 3)], 6),
        ([(0, 3), (0, 1)], 3),  # a late batch
    ],
)
def test_skipped_saves_are_counted_once(told: list[tuple[int, int]], counted: int, request) -> None:
    series = RunSeries("lab", request.node.name, own=True)
    for attempt, saves in told:
        series.skipped(attempt, saves)
    labels = {"namespace": "lab", "run": request.node.name}
    assert REGISTRY.get_sample_value("forkcast_saves_skipped_total", labels) == counted
