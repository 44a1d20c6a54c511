"""Triggers of slower measurements: validations above their trend, events that become more frequent."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import Tier
from forkcast.regressions import LEAST_SIZE, EventRate, Validations, exceeds_trend, rate_rose

FALLING = [3.0 - 0.1 * i + 0.01 * (-1) ** i for i in range(8)]


def test_validation_must_leave_its_trend() -> None:
    assert not exceeds_trend(FALLING, 2.2, 1.5)
    assert exceeds_trend(FALLING, 2.4, 1.5)
    assert not exceeds_trend(FALLING[:7], 9.0, 1.5)


def test_a_curve_that_flattens_is_not_worse_than_its_trend() -> None:
    losses = [2 + math.exp(-i / 5) for i in range(40)]
    assert not any(exceeds_trend(losses[i - 8 : i], losses[i], 1.5) for i in range(8, 40))


def after(
    losses: list[float], *, agrees: bool = False, history: list[float] = FALLING
) -> list[tuple[int, Tier]]:
    """What validations come to that follow ``history``, one every 100 steps: step and tier."""
    validations = Validations()
    found = [
        (100 * n, validations.fold(100 * n, loss, agrees=agrees))
        for n, loss in enumerate([*history, *losses])
    ]
    return [(step, one.tier) for step, one in found if one is not None]


#: A rougher history: its last is 2.34, sigma .045.
ROUGH = [3.0 - 0.1 * i + 0.04 * (-1) ** (i + 1) for i in range(8)]


def test_the_second_worse_validation_in_a_row_is_an_event() -> None:
    assert after([2.45]) == []
    assert after([2.45, 2.45], history=ROUGH) == [(900, Tier.EVENT)]


def test_validations_nearer_than_ten_steps_to_the_last_that_counted_are_passed_over() -> None:
    """Regression: a log with a validation in each row had 83 events."""
    whole, sparse = Validations(), Validations()
    noise = [2.0 + 0.03 * math.sin(7.0 * n * n) for n in range(600)]
    told = [whole.fold(step, loss, agrees=False) for step, loss in enumerate(noise)]
    tenth = [sparse.fold(step, noise[step], agrees=False) for step in range(0, 600, 10)]
    assert [one for one in told if one] == [one for one in tenth if one]
    assert whole.state() == sparse.state()
    # a run that goes on from an earlier step is no run that stands still
    before = whole.state()
    whole.fold(20, 2.0, agrees=False)
    assert whole.state() != before


def test_one_worse_validation_is_none() -> None:
    assert after([2.6, 2.1, 2.6, 2.0, 2.6, 1.9]) == []


def test_a_second_validation_that_is_worse_beyond_chance_asks_for_a_branch() -> None:
    assert after([2.6, 2.6]) == [(900, Tier.BRANCH)]
    assert after([2.32, 2.6]) == [(900, Tier.EVENT)]  # the first of them was by chance, maybe


def test_a_third_validation_confirms_what_the_second_did_not() -> None:
    assert after([2.49, 2.49, 2.49, 2.49], history=ROUGH) == [
        (900, Tier.EVENT),
        (1000, Tier.BRANCH),
    ]


def test_a_third_that_is_back_at_the_trend_asks_for_nothing() -> None:
    assert after([2.45, 2.45, 2.1, 2.0, 1.9], history=ROUGH) == [(900, Tier.EVENT)]


def test_a_training_loss_that_has_departed_bears_the_second_out() -> None:
    assert after([2.45, 2.45], history=ROUGH) == [(900, Tier.EVENT)]
    assert after([2.45, 2.45], history=ROUGH, agrees=True) == [(900, Tier.BRANCH)]


@pytest.mark.parametrize("agrees", [False, True])
def test_what_is_smaller_than_the_least_is_an_event_for_ever(*, agrees: bool) -> None:
    quiet = [3.0 - 1e-3 * i + 1e-4 * (-1) ** i for i in range(8)]
    level = 2.993 + 0.9 * LEAST_SIZE
    assert after([level] * 6, history=quiet, agrees=agrees) == [(900, Tier.EVENT)]


def test_a_new_level_is_known_after_a_branch_or_eight_validations() -> None:
    assert after([2.6] * 20) == [(900, Tier.BRANCH)]
    quiet = [3.0 - 1e-3 * i + 1e-4 * (-1) ** i for i in range(8)]
    assert after([3.03] * 40, history=quiet) == [(900, Tier.EVENT)]


def test_a_regression_that_grows_slowly_is_a_branch_when_it_is_large_enough() -> None:
    quiet = [3.0 - 1e-3 * i + 1e-4 * (-1) ** i for i in range(8)]
    found = after([2.993 + 0.018 * n for n in range(1, 6)], history=quiet)
    assert found == [(900, Tier.EVENT), (1100, Tier.BRANCH)]


def test_sigma_is_that_of_sixteen_validations_for_a_branch() -> None:
    """Eight that happen to lie on a line say little of how validations scatter."""
    scatter = [2.5 + 0.1 * (-1) ** i for i in range(8)]
    line = [2.5 + 1e-4 * (-1) ** i for i in range(8)]
    assert after([2.62, 2.62], history=[*scatter[:7], *line]) == [(1600, Tier.BRANCH)]
    assert after([2.62, 2.62, 2.62], history=[*scatter, *line]) == [(1700, Tier.EVENT)]


def test_the_onset_is_the_first_worse_validation() -> None:
    validations = Validations()
    found = [
        validations.fold(100 * n, loss, agrees=False) for n, loss in enumerate([*FALLING, 2.6, 2.7])
    ]
    assert found[-1] is not None
    assert (found[-1].onset, found[-1].running) == (800, 2)
    assert found[-1].excess == pytest.approx(2.7 - 2.29, abs=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e308])
def test_a_validation_that_is_no_number_is_none(bad: float) -> None:
    validations, hit = Validations(), Validations()
    for step, loss in enumerate(FALLING):
        validations.fold(step, loss, agrees=False)
        assert hit.fold(step, bad, agrees=True) is None
        hit.fold(step, loss, agrees=False)
    assert hit.state() == validations.state()


WINDOW = 10_000


def test_a_rate_must_rise_beyond_chance() -> None:
    assert not rate_rose(events=2, seen=WINDOW, events_before=1, seen_before=WINDOW)
    assert rate_rose(events=14, seen=WINDOW, events_before=1, seen_before=WINDOW)
    assert not rate_rose(events=14, seen=WINDOW, events_before=13, seen_before=WINDOW)
    assert rate_rose(events=1300, seen=WINDOW, events_before=1000, seen_before=WINDOW)
    assert not rate_rose(events=1200, seen=WINDOW, events_before=1000, seen_before=WINDOW)


def test_steps_that_nobody_saw_are_no_calm() -> None:
    assert rate_rose(events=14, seen=WINDOW, events_before=2, seen_before=WINDOW)
    assert not rate_rose(events=14, seen=WINDOW, events_before=5, seen_before=WINDOW // 2)
    assert not rate_rose(events=14, seen=WINDOW, events_before=0, seen_before=WINDOW // 2 - 1)


def told(steps: list[tuple[int, int]]) -> list[int]:
    """The steps of those events, (step, onset), at which the rate has risen."""
    rate = EventRate()
    return [step for step, onset in steps if rate.fold(step, onset)]


def test_events_that_become_more_frequent_fire() -> None:
    calm = [(step, step) for step in (2000, 9000)]
    assert not told(calm + [(step, step) for step in range(11_000, 20_500, 4000)])
    assert told(calm + [(step, step) for step in range(11_000, 20_500, 600)])


def test_a_departure_that_asks_again_and_again_is_one_event() -> None:
    """Regression: a branch that was refused asks again; each time counted as another event."""
    asks = [10_500 + 200 * n for n in range(50)]
    assert told([(step, step) for step in asks])  # fifty departures
    assert not told([(step, 10_500) for step in asks])


def test_a_rise_is_told_once_a_window() -> None:
    """Regression: a branch was asked for at each of eight events after the rate had risen."""
    found = told([(step, step) for step in range(11_000, 61_000, 600)])
    assert 1 <= len(found) <= 2
    assert found[-1] - found[0] >= 9_000 or len(found) == 1


@pytest.mark.parametrize("apart", [60, 100, 250, 400])
def test_a_run_of_many_events_has_no_rate_that_rises(apart: int) -> None:
    """Regression: of 200 events evenly spread the oldest were forgotten, and the rest had a rise."""
    assert not told([(step, step) for step in range(100, 60_000, apart)])


def test_gaps_count_by_the_steps_that_they_hid() -> None:
    rate = EventRate()
    rate.missed(0, 4000)
    rate.missed(6000, 9000)  # three of ten thousand steps seen
    assert not any(rate.fold(step, step) for step in range(10_500, 20_500, 600))
    rate = EventRate()
    rate.missed(100, 2**40)  # a step that is wrong
    assert len(json.dumps(rate.state())) < 600


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 200), st.booleans()), max_size=150),
    st.integers(0, 150),
    st.lists(st.one_of(st.floats(allow_nan=True), st.floats(2, 3)), max_size=30),
    st.booleans(),
)
def test_a_restart_is_bit_equal_and_the_state_small(events, cut, losses, agrees) -> None:
    rate, validations = EventRate(), Validations()
    step = 0
    for number, (apart, since, gap) in enumerate(events):
        if number == cut:
            state = json.loads(json.dumps(rate.state()))
            rate = EventRate()
            rate.restore(state)
            assert rate.state() == state
        if gap:
            rate.missed(step + 1, step + apart)
        step += apart
        rate.fold(step, max(0, step - since))
    for loss in losses:
        state = json.loads(json.dumps(validations.state(), allow_nan=False))
        other = Validations()
        other.restore(state)
        assert other.fold(step, loss, agrees=agrees) == validations.fold(step, loss, agrees=agrees)
        assert other.state() == validations.state()
    assert len(json.dumps(rate.state(), separators=(",", ":"))) < 900
