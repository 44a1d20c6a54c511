"""The lineage log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkcast.lineage import head, key, limits
from forkcast.records import StateKind
from tests.make import lineage_entry, state_ref

STATE = state_ref(9, StateKind.ROLLOUT)
FIRST = lineage_entry(state=STATE, base_step=5, trigger_step=7)


def test_the_head_is_the_highest_epoch_in_any_order() -> None:
    second = replace(FIRST, epoch=2)
    assert head([]) is None
    assert head([second, FIRST]) == second


@pytest.mark.parametrize("epochs", [(2,), (1, 3), (1, 1), (0, 1)])
def test_a_gap_or_a_repeated_epoch_is_damage(epochs) -> None:
    with pytest.raises(ValueError, match="lineage"):
        head([replace(FIRST, epoch=epoch) for epoch in epochs])


def test_keys() -> None:
    assert key(3) == "lineage/3.json"


def opened(*base_steps):
    return [replace(FIRST, epoch=e, base_step=b) for e, b in enumerate(base_steps, start=1)]


def test_a_lineage_leaves_an_epoch_at_the_lowest_base_of_all_later_ones() -> None:
    entries = opened(50, 80, 60, 90)
    assert limits(entries, 4) == {0: 50, 1: 60, 2: 60, 3: 90}
    assert limits(reversed(entries), 2) == {0: 50, 1: 80}
    assert limits(entries, 0) == {}
    assert limits([], 3) == {}


def test_nothing_is_known_before_an_opening_that_is_missing() -> None:
    first, _, third = opened(50, 80, 60)
    assert limits([first, third], 3) == {2: 60}


def test_limits_cost_what_is_known_whatever_epoch_is_asked_for() -> None:
    """Counting down from it would take minutes and gigabytes."""
    assert limits([*opened(50, 80), replace(FIRST, epoch=2**32 - 1)], 2**32 - 1) == {2**32 - 2: 5}
