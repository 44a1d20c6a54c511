"""Which states stay, and which a branch forks from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast.lineage import LineageEntry
from forkcast.records import StateRef
from forkcast.retention import (
    choose_bases,
    is_log_spaced,
    keep,
    log_spaced_steps,
    of_lineage,
)
from tests.make import lineage_entry, state_ref


def ref(step: int, epoch: int = 0, attempt: int = 1, *, good: bool = False) -> StateRef:
    return state_ref(step, epoch=epoch, attempt=attempt, good=good)


def entry(epoch: int, base_step: int) -> LineageEntry:
    state, trigger_step = ref(base_step + 100), base_step + 50
    return lineage_entry(epoch, state=state, base_step=base_step, trigger_step=trigger_step)


def test_the_last_the_good_the_pinned_and_a_few_older_stay() -> None:
    states = [ref(step, good=step == 400) for step in range(0, 2000, 50)]
    stay = keep(states, keep_last=3, pinned_steps=[650], pins=[ref(850).key])
    steps = {int(key[-12:]) for key in stay}
    assert steps >= {1950, 1900, 1850, 400, 650, 850, 0}
    assert len(steps) <= 3 + 1 + 1 + 1 + 4


@given(
    st.lists(st.integers(0, 10**6), max_size=60, unique=True),
    st.integers(1, 8),
    st.sets(st.integers(0, 59)),
)
def test_what_is_pinned_stays_and_the_number_is_bounded(steps, keep_last, pinned) -> None:
    states = [ref(step) for step in steps]
    pins = {states[i].key for i in pinned if i < len(states)}
    stay = keep(states, keep_last=keep_last, pins=pins)
    newest = sorted(states, key=lambda one: one.step)[-keep_last:]
    assert pins | {one.key for one in newest} <= stay <= {one.key for one in states}
    assert len(stay) <= keep_last + len(pins) + 4


def test_old_states_stay_spread_while_the_run_goes_on() -> None:
    states: list[StateRef] = []
    for step in range(0, 5000, 25):
        states.append(ref(step))
        stay = keep(states, keep_last=8)
        states = [one for one in states if one.key in stay]
    ages = [4975 - one.step for one in states]
    assert any(300 <= age <= 1200 for age in ages)
    assert max(ages) >= 2000


def test_keep_last_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="keep_last"):
        keep([], keep_last=0)


@pytest.mark.parametrize(
    ("before", "depths", "oldest", "expected"),
    [
        (130, (0, 50), 0, [125, 75]),
        (125, (0, 50), 0, [100, 75]),  # the state at the departure is part of it
        (130, (0, 5, 10), 0, [125, 100]),  # distinct
        (130, (0, 500), 0, [125, 0]),  # no state is that old
        (130, (0, 50), 100, [125, 100]),
        (25, (0,), 0, [0]),
        (0, (0,), 0, []),
        (130, (50,), 0, [125, 75]),  # the newest is always there: the control starts from it
    ],
)
def test_bases(before, depths, oldest, expected) -> None:
    states = [ref(step) for step in range(0, 200, 25)]
    chosen = choose_bases(states, before_step=before, depths=depths, oldest=oldest)
    assert [one.step for one in chosen] == expected


def test_of_two_attempts_at_one_step_the_later_is_taken() -> None:
    chosen = choose_bases(
        [ref(50, attempt=2), ref(50, attempt=1)], before_step=60, depths=(0,), oldest=0
    )
    assert [one.attempt for one in chosen] == [2]


def test_a_lineage_does_not_see_what_it_abandoned() -> None:
    states = [ref(s, e) for e in (0, 1, 2) for s in (100, 200, 300)]
    log = [entry(1, base_step=200), entry(2, base_step=100)]

    def seen(epoch: int) -> list[tuple[int, int]]:
        return [(one.epoch, one.step) for one in of_lineage(states, log, epoch)]

    assert seen(0) == [(0, 100), (0, 200), (0, 300)]
    assert seen(1) == [(0, 100), (0, 200), (1, 100), (1, 200), (1, 300)]
    assert seen(2) == [(0, 100), (1, 100), (2, 100), (2, 200), (2, 300)]


def test_a_deeper_base_is_a_known_good_state_unless_that_is_far_older() -> None:
    good = (0, 25, 50)
    states = [ref(step, good=step in good) for step in range(0, 200, 25)]

    def bases(before: int, depth: int) -> list[int]:
        chosen = choose_bases(states, before_step=before, depths=(0, depth), oldest=0)
        return [one.step for one in chosen]

    assert bases(130, 50) == [125, 50]  # 75 is as deep as it must be, 50 is known to be good
    assert bases(130, 80) == [125, 50]
    assert bases(199, 20) == [175]  # the newest good one is six times as old


def test_of_two_states_at_one_step_the_known_good_one_is_taken() -> None:
    states = [ref(50, attempt=1, good=True), ref(50, attempt=2)]
    chosen = choose_bases(states, before_step=60, depths=(0,), oldest=0)
    assert [one.attempt for one in chosen] == [1]


@given(st.integers(0, 10**6), st.integers(0, 1000))
def test_log_spaced_steps_are_0_and_the_doublings_of_the_first(step, first) -> None:
    steps = log_spaced_steps(10**6, first)
    assert steps == (() if not first else (0, *(first << n for n in range(len(steps) - 1))))
    assert is_log_spaced(step, first) == (step in steps)


def test_states_of_log_spaced_steps_stay_for_the_life_of_the_run() -> None:
    states: list[StateRef] = []
    for step in range(0, 100_000, 50):
        states.append(ref(step + (3 if step == 400 else 0)))  # a save may come late
        stay = keep(states, keep_last=4, log_spaced_from=50)
        states = [one for one in states if one.key in stay]
    steps = {one.step for one in states}
    assert steps >= {0, 50, 100, 200, 403, 800, 1600, 3200, 6400, 12800, 25600, 51200}
    assert len(steps) <= 12 + 4 + 4
    assert {one.step for one in states if one.key in keep(states, keep_last=4)} < steps


def test_after_a_rewind_both_lineages_of_a_log_spaced_step_stay() -> None:
    states = [ref(step, 0) for step in (0, 100, 150, 200, 250)]
    states += [ref(step, 1) for step in (170, 200, 250, 300, 350, 400, 450, 500)]
    stay = keep(states, keep_last=1, log_spaced_from=100)
    kept = [(one.epoch, one.step) for one in states if one.key in stay]
    assert {(0, 0), (0, 100), (1, 170), (1, 200), (1, 400)} <= set(kept)
    assert (0, 200) not in kept  # abandoned, and taken again


def test_a_depth_beyond_the_oldest_state_goes_back_to_it() -> None:
    states = [ref(step) for step in (0, 50, 100)]
    chosen = choose_bases(states, before_step=130, depths=(0, 500), oldest=0)
    assert [one.step for one in chosen] == [100, 0]
