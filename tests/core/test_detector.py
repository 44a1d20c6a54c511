"""Robust windows, the index and the trigger."""

import json
import math
import statistics

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import StepStats, TriggerRule
from forkcast.robust import RobustWindow
from forkcast.spikes import SpikeScore, merge
from forkcast.trigger import exceeds_trend, rate_rose
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty

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


def stats(step, loss, norm=1.0, **more):
    return StepStats(
        run_uid="u",
        epoch=0,
        attempt=0,
        rank=0,
        step=step,
        loss=loss,
        grad_norm=norm,
        grad_norm_clipped=norm,
        learning_rate=1e-3,
        tokens=step,
        **more,
    )


def series(n=700, spike=500, seed=0):
    rng = np.random.default_rng(seed)
    for step in range(n):
        high = 1.5 if spike <= step < spike + 10 else 0.0
        entropy = (0.6 + 0.01 * rng.standard_normal(),) if step % 10 == 0 else None
        yield stats(
            step,
            3 + 2 * math.exp(-step / 200) + 0.1 * rng.standard_normal() + high,
            math.exp(0.2 * rng.standard_normal()),
            attention_entropy=entropy,
        )


def detector():
    return Detector(configure(Uncertainty(window=64, warmup_steps=60)), "u")


def test_a_spike_triggers_at_its_first_step_and_once():
    d = detector()
    fired = [t for one in series() if (t := d.fold(one)[1]) and 495 <= t.step <= 520]
    assert [t.step for t in fired] == [500]
    assert fired[0].onset_step <= 500


def test_a_constant_series_never_triggers():
    d = detector()
    assert not any(d.fold(stats(step, 3.0))[1] for step in range(500))


def test_a_non_finite_loss_is_its_own_rule_and_poisons_nothing():
    d = detector()
    for one in series(400, spike=10_000):
        d.fold(one)
    before = json.dumps(d.state()["index"])
    _, trigger = d.fold(stats(400, math.nan, math.nan))
    assert trigger is not None
    assert trigger.rule is TriggerRule.NON_FINITE
    assert "NaN" not in json.dumps(d.state())
    assert before


@settings(max_examples=20)
@given(st.integers(1, 699))
def test_restart_at_any_step_gives_the_same_figures(cut):
    whole, first = detector(), detector()
    expected = [whole.fold(one) for one in series()]
    rows = list(series())
    got = [first.fold(one) for one in rows[:cut]]
    second = detector()
    second.restore(json.loads(json.dumps(first.state())))
    got += [second.fold(one) for one in rows[cut:]]
    assert got == expected


def test_forced_triggers_come_on_time():
    uncertainty = Uncertainty.model_validate(
        {"trigger": {"forceEverySteps": 50}, "cooldownSteps": 0}
    )
    d = Detector(configure(uncertainty), "u")
    fired = [t.step for step in range(160) if (t := d.fold(stats(step, 3.0))[1])]
    assert fired == [50, 100, 150]


def test_validation_must_leave_its_trend():
    falling = [3.0 - 0.1 * i + 0.01 * (-1) ** i for i in range(8)]
    assert not exceeds_trend(falling, 2.2, 1.5)
    assert exceeds_trend(falling, 2.4, 1.5)
    assert not exceeds_trend(falling[:7], 9.0, 1.5)


def test_a_rate_must_rise_beyond_chance():
    assert not rate_rose([100, 12_000, 13_000], 20_000)
    assert rate_rose([100, *range(10_500, 20_000, 700)], 20_000)
    assert not rate_rose(list(range(1, 40)), 15_000)


def test_spike_score_flags_and_merges():
    score = SpikeScore()
    for step in range(200):
        score.fold(step, 3 + 0.1 * (-1) ** step, 1 + 0.1 * (-1) ** step)
    assert not score.flagged
    assert score.fold(200, 5.0, 1.0)
    assert score.fold(201, 3.0, 9.0)
    assert merge([10, 20, 100]) == [(10, 20), (100, 100)]
