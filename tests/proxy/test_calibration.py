"""Calibration against hand figures, and coverage where it is promised."""

import math

import numpy as np
import pytest
from scipy import stats

from forkcast_proxy.calibration import (
    AdaptiveLevel,
    binomial_lower,
    binomial_upper,
    conformal_quantile,
    grouped_quantile,
    normalised_scores,
    one_sided_scores,
    risk_table,
)


def test_quantile_is_the_ceiling_rank():
    scores = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0]  # n = 9
    assert conformal_quantile(scores, 0.1) == 9.0  # ceil(10 * .9) = 9
    assert conformal_quantile(scores, 0.2) == 8.0
    assert conformal_quantile(scores, 0.5) == 5.0


@pytest.mark.parametrize(("alpha", "least"), [(0.2, 4), (0.1, 9), (0.05, 19)])
def test_too_few_fail_closed(alpha, least):
    assert conformal_quantile(range(least - 1), alpha) == math.inf
    assert conformal_quantile(range(least), alpha) == least - 1
    assert conformal_quantile([], alpha) == math.inf
    assert grouped_quantile([], [], alpha) == math.inf


def test_groups_of_one_are_plain_split_conformal():
    scores = np.random.default_rng(0).normal(size=40)
    for alpha in (0.05, 0.1, 0.37):
        assert grouped_quantile(scores, range(40), alpha) == conformal_quantile(scores, alpha)


def test_many_rows_of_few_runs_are_few():
    assert grouped_quantile(np.arange(800.0), [n // 100 for n in range(800)], 0.1) == math.inf


def test_scores():
    assert normalised_scores([3.0], [1.0], [4.0]).tolist() == [0.5]
    assert one_sided_scores([1.0], [3.0], [4.0]).tolist() == [-0.5]


def test_coverage_of_exchangeable_scores():
    rng = np.random.default_rng(1)
    inside = [
        rng.exponential() <= conformal_quantile(rng.exponential(size=30), 0.1) for _ in range(4000)
    ]
    assert 0.885 < np.mean(inside) < 0.95  # in [.9, .9 + 1/31], sd .005


def test_coverage_of_new_groups():
    """Rows of a group share most of their error; a new group is still covered."""
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(1500):
        group = rng.normal(size=16).repeat(12) + 0.1 * rng.normal(size=192)
        quantile = grouped_quantile(np.abs(group), np.arange(16).repeat(12).tolist(), 0.1)
        inside.append(abs(rng.normal() + 0.1 * rng.normal()) <= quantile)
    assert np.mean(inside) > 0.88


def test_one_sided_upper_bound_covers():
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(2000):
        truth, spread = rng.normal(size=20), rng.uniform(0.5, 2, size=20)
        scores = one_sided_scores(truth[:-1], np.zeros(19), spread[:-1])
        inside.append(truth[-1] <= conformal_quantile(scores, 0.2) * spread[-1])
    assert np.mean(inside) > 0.77


def test_no_event_in_fourteen_is_below_a_fifth():
    assert binomial_upper(0, 14, 0.05) == pytest.approx(1 - 0.05 ** (1 / 14))
    assert binomial_upper(0, 14, 0.05) < 0.2 < binomial_upper(0, 13, 0.05)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 400), (0, 1)])
def test_the_bounds_are_those_of_scipys_exact_interval(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.9, "exact")
    bounds = binomial_lower(k, n, 0.05), binomial_upper(k, n, 0.05)
    assert bounds == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_trials_say_nothing():
    assert (binomial_lower(0, 0, 0.1), binomial_upper(0, 0, 0.1)) == (0.0, 1.0)


def test_adaptive_level_by_hand():
    level = AdaptiveLevel(0.2, 0.2).after(missed=True)
    assert level.alpha == pytest.approx(0.16)  # .2 + .05 (.2 - 1)
    assert level.after(missed=False).alpha == pytest.approx(0.17)
    assert AdaptiveLevel(0.2, -0.01).quantile([1.0], ["a"]) == math.inf
    assert AdaptiveLevel(0.2, 1.0).quantile([1.0], ["a"]) == -math.inf


def test_adaptive_level_meets_its_target_while_the_data_drift():
    rng, scores = np.random.default_rng(4), np.random.default_rng(5).exponential(size=60)
    level, missed = AdaptiveLevel(0.2, 0.2), []
    for step in range(600):
        truth = rng.exponential() * (1 + step / 200)
        missed.append(bool(truth > level.quantile(scores, range(60))))
        level = level.after(missed=missed[-1])
    bound = (max(0.2, 0.8) + 0.05) / (600 * 0.05)
    assert abs(np.mean(missed) - 0.2) <= bound


def test_risk_bins_count_runs_and_rise():
    probability = np.repeat([0.1, 0.9], 400)
    runs = np.tile(np.arange(20).repeat(20), 2)
    events = np.repeat([False, True], 400)
    table = risk_table(probability, events, runs.tolist(), alpha=0.1, bins=2)
    assert table.runs == (20, 20)
    assert table.bounds(0.05)[1] == pytest.approx(1 - 0.1 ** (1 / 20))  # none in 20 runs, not 400
    assert table.bounds(0.95) == (pytest.approx(0.1 ** (1 / 20)), 1.0)
    empty = risk_table([], [], [], alpha=0.1, bins=4)
    assert empty.bounds(0.0) == (0.0, 1.0)


def test_risk_bound_holds_on_new_runs():
    """P(true rate > bound) is at most alpha, by run."""
    rng, above = np.random.default_rng(6), 0
    for _ in range(400):
        events = rng.random(30) < 0.15
        table = risk_table(np.full(30, 0.3), events, range(30), alpha=0.1, bins=1)
        above += table.bounds(0.3)[1] < 0.15
    assert above / 400 < 0.13
