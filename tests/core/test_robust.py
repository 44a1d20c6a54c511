"""Robust windows and the spike score are their textbook figures."""

from __future__ import annotations

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from forkcast.robust import RobustWindow
from forkcast.spikes import SpikeScore, merge

FLOATS = st.floats(-1e6, 1e6)


@given(st.lists(FLOATS, min_size=8, max_size=60), FLOATS)
def test_robust_z_is_the_textbook_figure(values, value):
    window = RobustWindow(32)
    for one in values:
        window.push(one)
    last = values[-32:]
    center = statistics.median(last)
    spread = 1.4826 * statistics.median(abs(x - center) for x in last)
    expected = 0.0
    if spread > 1e-12 * max(1.0, abs(center)):
        expected = max(-1e3, min(1e3, (value - center) / spread))
    assert math.isclose(window.z(value), expected, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(st.one_of(FLOATS, st.integers(0, 3).map(float)), min_size=8, max_size=80))
def test_a_window_that_has_lived_scores_as_one_made_anew(values):
    lived = RobustWindow(24)
    for one in values:
        assert lived.z(one) == RobustWindow(24, lived.state()).z(one)
        center = lived.median()
        expected = statistics.median([abs(x - center) for x in lived.state()] or [0.0])
        assert math.isclose(lived.deviation(center), expected, rel_tol=1e-9, abs_tol=1e-9)
        lived.push(one)


def test_spike_score_flags_and_merges():
    score = SpikeScore()
    for step in range(200):
        score.fold(step, 3 + 0.1 * (-1) ** step, 1 + 0.1 * (-1) ** step)
    assert not score.flagged
    assert score.fold(200, 5.0, 1.0)
    assert score.fold(201, 3.0, 9.0)
    assert merge([10, 20, 100]) == [(10, 20), (100, 100)]
