"""The learning rate's schedule: where it begins, where it ends, and what comes after it."""

import itertools
import math

import pytest

from forkcast.schedule import LearningRate


def cosine(steps, warmup=0, low=1e-4):
    return LearningRate(peak=1e-3, low=low, warmup=warmup, steps=steps)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (40, 5), (2, 0), (100, 98)])
def test_cosine_has_its_minimum_at_the_last_step_and_not_before(steps, warmup):
    schedule = cosine(steps, warmup)
    assert schedule.at(steps - 1) == pytest.approx(1e-4, rel=1e-12)
    assert schedule.at(steps - 2) > 1.0001e-4
    assert schedule.at(warmup) == pytest.approx(1e-3)


def test_beyond_its_length_the_schedule_stays_at_its_minimum():
    schedule = cosine(40, warmup=5, low=0.0)
    assert {schedule.at(step) for step in (40, 41, 79, 10_000)} == {0.0}


def test_no_rate_leaps_whatever_the_length():
    for steps in (7, 40, 1000):
        schedule = cosine(steps, warmup=5)
        rates = [schedule.at(step) for step in range(5, 2 * steps)]
        assert all(after <= before for before, after in itertools.pairwise(rates))


def test_the_warm_up_is_linear_and_ends_at_the_peak():
    schedule = cosine(100, warmup=4)
    assert [schedule.at(step) for step in range(4)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])


def test_a_single_step_after_the_warm_up_has_the_peak():
    assert cosine(5, warmup=4).at(4) == 1e-3
    assert cosine(1).at(0) == 1e-3


def test_without_a_length_the_peak_is_kept():
    schedule = cosine(None, warmup=4)
    assert {schedule.at(step) for step in (4, 50, 10**6)} == {1e-3}
    assert math.isclose(schedule.at(0), 2.5e-4)
