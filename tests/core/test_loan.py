"""What a lineage owes of its learning rate, and what a branch may pay back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast.actions import Action
from forkcast.lineage import LineageEntry, in_force
from forkcast.loan import PAID_BACK, rate_in_force, repayments
from forkcast.records import StateKind
from tests.make import lineage_entry, state_ref


def entry(epoch: int, scale: float, base: int, end: int) -> LineageEntry:
    return lineage_entry(
        epoch,
        branch=f"b{epoch}",
        action=Action(learning_rate_scale=scale),
        state=state_ref(end, StateKind.ROLLOUT, key=f"s{epoch}", epoch=epoch - 1),
        base_step=base,
        trigger_step=base + 1,
    )


def chain(*scales: float) -> list[LineageEntry]:
    """Collapses that each rest on all before."""
    return [entry(n, scale, 100 * n, 100 * n + 50) for n, scale in enumerate(scales, start=1)]


@pytest.mark.parametrize(
    ("scales", "offers"),
    [
        ((), ()),
        ((1.0, 1.1), ()),
        ((0.8, 1.25), ()),
        ((0.9, 1.1), ()),  # .99: not worth a branch
        ((0.8,), (1.25, math.sqrt(1.25))),
        ((0.8, 0.9), (1 / 0.9, math.sqrt(1 / 0.9))),  # the last cut first
        ((0.8, 1.1), (1 / 0.88, math.sqrt(1 / 0.88))),  # never beyond the schedule
    ],
)
def test_offers(scales, offers) -> None:
    lineage = chain(*scales)
    assert repayments(lineage, len(scales)) == pytest.approx(offers)


def test_an_older_epoch_owes_only_its_own_cuts() -> None:
    lineage = chain(0.8, 0.9)
    assert repayments(lineage, 0) == ()
    assert rate_in_force(lineage, 1) == 0.8


def test_a_collapse_from_before_an_earlier_one_abandoned_its_cut() -> None:
    lineage = [entry(1, 0.8, 100, 150), entry(2, 0.9, 160, 220), entry(3, 0.7, 90, 300)]
    assert [one.epoch for one in in_force(lineage, 2)] == [2, 1]
    assert [one.epoch for one in in_force(lineage, 3)] == [3]
    assert rate_in_force(lineage, 3) == 0.7
    # the state at step 150 of epoch 1 is its first, so a base there holds its cut
    assert [one.epoch for one in in_force([lineage[0], entry(2, 0.9, 150, 220)], 2)] == [2, 1]


def test_a_gap_is_damage() -> None:
    with pytest.raises(ValueError, match="epoch 1 is missing"):
        rate_in_force(chain(0.8, 0.9)[1:], 2)


@given(st.lists(st.sampled_from([0.5, 0.8, 0.9, 1.0, 1.1]), min_size=1, max_size=8), st.data())
def test_paying_back_ends_near_the_schedule_and_never_beyond(scales, data) -> None:
    lineage = chain(*scales)
    for _ in range(100):
        owed = rate_in_force(lineage, len(lineage))
        offers = repayments(lineage, len(lineage))
        if not offers:
            break
        assert all(one > 1 and owed * one <= 1 + 1e-9 for one in offers)
        paid = data.draw(st.sampled_from(offers))
        lineage = chain(*(one.action.learning_rate_scale for one in lineage), paid)
    assert rate_in_force(lineage, len(lineage)) >= PAID_BACK
