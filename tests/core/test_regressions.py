"""Triggers of slower measurements: validations above their trend, events that become more frequent."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.regressions import EventRate, Validations, exceeds_trend, rate_rose

FALLING = [3.0 - 0.1 * i + 0.01 * (-1) ** i for i in range(8)]


def test_validation_must_leave_its_trend() -> None:
    assert not exceeds_trend(FALLING, 2.2, 1.5)
    assert exceeds_trend(FALLING, 2.4, 1.5)
    assert not exceeds_trend(FALLING[:7], 9.0, 1.5)


def test_a_curve_that_flattens_is_not_worse_than_its_trend() -> None:
    losses = [2 + math.exp(-i / 5) for i in range(40)]
    assert not any(exceeds_trend(losses[i - 8 : i], losses[i], 1.5) for i in range(8, 40))


def test_the_second_worse_validation_in_a_row_fires_and_the_new_level_is_then_known() -> None:
    validations = Validations()
    assert not any(validations.fold(loss) for loss in FALLING)
    assert not validations.fold(2.6)
    assert validations.fold(2.6)
    assert not any(validations.fold(2.6) for _ in range(20))


def test_one_worse_validation_is_none() -> None:
    validations = Validations()
    for loss in FALLING:
        validations.fold(loss)
    found = [validations.fold(loss) for loss in (2.6, 2.1, 2.6, 2.0, 2.6, 1.9)]
    assert not any(found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e308])
def test_a_validation_that_is_no_number_is_none(bad: float) -> None:
    validations, hit = Validations(), Validations()
    for loss in FALLING:
        validations.fold(loss)
        assert not hit.fold(bad)
        hit.fold(loss)
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
    st.lists(st.floats(allow_nan=True), max_size=30),
)
def test_a_restart_is_bit_equal_and_the_state_small(events, cut, losses) -> None:
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
        assert other.fold(loss) == validations.fold(loss)
        assert other.state() == validations.state()
    assert len(json.dumps(rate.state(), separators=(",", ":"))) < 900
