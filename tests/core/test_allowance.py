"""What a branch may cost: by severity, by what has been tried, by what is left of the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast.allowance import Allowance, Grounds, allow, may_use_all, severe, spent_early
from forkcast.branch_rules import BranchRules
from forkcast.canonical import plain
from forkcast.records import Trigger, TriggerRule
from tests import make

HALF = (TriggerRule.VALIDATION_REGRESSION, TriggerRule.INSTABILITY_RATE, TriggerRule.CALM)


def triggers(**fixed: object) -> st.SearchStrategy[Trigger]:
    """Of epochs 0 and 1, with few onsets: some are of one departure."""
    given = {
        "step": st.integers(100, 130),
        "onset_step": st.integers(98, 100),
        "epoch": st.integers(0, 1),
        "rule": st.sampled_from(TriggerRule),
        "severe": st.booleans(),
    }
    return st.builds(make.trigger, **{**given, **{k: st.just(v) for k, v in fixed.items()}})


MOST = st.integers(1, 16)
BEFORE = st.lists(triggers(), max_size=8)


@given(triggers(), MOST, BEFORE, st.booleans())
def test_a_branch_has_one_candidate_at_least_and_no_more_than_the_manifest_says(
    asks, most, before, early
) -> None:
    found = allow(asks, most, before, spent_early=early)
    if found is not None:
        assert 1 <= found.candidates <= found.most == most
        assert all(1 <= found.share(n) <= min(max(n, 1), found.candidates) for n in range(1, 17))


@given(triggers(), MOST, BEFORE, st.booleans())
def test_the_same_values_allow_the_same_in_whatever_order(asks, most, before, early) -> None:
    found = allow(asks, most, before, spent_early=early)
    assert found == allow(asks, most, tuple(reversed(before)), spent_early=early)


def size(found: Allowance | None) -> int:
    return 0 if found is None else found.candidates


@given(triggers(), MOST, BEFORE, triggers(), st.booleans())
def test_what_was_tried_and_what_was_spent_never_make_a_branch_larger(
    asks, most, before, one_more, early
) -> None:
    found = size(allow(asks, most, before, spent_early=early))
    assert size(allow(asks, most, [*before, one_more], spent_early=early)) <= found
    assert size(allow(asks, most, before, spent_early=True)) <= found


@given(triggers(), MOST, BEFORE, st.booleans())
def test_a_severe_departure_never_gets_less_than_the_same_that_is_not(
    asks, most, before, early
) -> None:
    plain_one, bad = replace(asks, severe=False), replace(asks, severe=True)
    assert size(allow(bad, most, before, spent_early=early)) >= size(
        allow(plain_one, most, before, spent_early=early)
    )


@pytest.mark.parametrize("rule", [one for one in TriggerRule if one not in HALF])
@pytest.mark.parametrize("bad", [False, True])
def test_the_first_branch_of_a_departure_gets_the_whole(rule, bad) -> None:
    asks = make.trigger(rule=rule, severe=bad)
    others = [replace(asks, onset_step=50), replace(asks, epoch=1)]
    found = allow(asks, 6, others, spent_early=False)
    assert found is not None
    assert found.candidates == 6


@pytest.mark.parametrize("rule", sorted(HALF))
@pytest.mark.parametrize(("most", "candidates"), [(6, 3), (5, 2), (1, 1)])
def test_what_can_wait_gets_a_half(rule, most, candidates) -> None:
    assert size(allow(make.trigger(rule=rule), most, [], spent_early=False)) == candidates


def test_a_departure_that_asks_again_gets_a_half_each_time_and_then_none() -> None:
    asks, before, sizes = make.trigger(), [], []
    for n in range(5):
        sizes.append(size(allow(asks, 6, before, spent_early=False)))
        before.append(replace(asks, step=asks.step + n))
    assert sizes == [6, 3, 1, 0, 0]


def test_a_validation_loss_that_stays_up_asks_again_for_half_of_its_half() -> None:
    asks = make.trigger(rule=TriggerRule.VALIDATION_REGRESSION, onset_step=50)
    before = [replace(asks, step=80 + n) for n in range(2)]
    sizes = [size(allow(asks, 6, before[:n], spent_early=True)) for n in range(3)]
    assert sizes == [3, 1, 0]


def test_a_departure_that_has_become_severe_is_looked_at_anew() -> None:
    slow = make.trigger(rule=TriggerRule.SLOW)
    worse = replace(slow, step=slow.step + 10, severe=True)
    found = allow(worse, 6, [slow], spent_early=True)
    assert found == Allowance(candidates=6, most=6, grounds=Grounds.SEVERE)
    again = allow(worse, 6, [slow, worse], spent_early=True)
    assert again == Allowance(candidates=3, most=6, grounds=Grounds.AGAIN)


def test_a_run_that_is_not_finite_gets_the_whole_each_time() -> None:
    asks = make.trigger(rule=TriggerRule.NON_FINITE)
    assert size(allow(asks, 6, [asks] * 7, spent_early=True)) == 6


def test_who_may_use_the_kept_part_of_a_budget() -> None:
    allowed = {rule for rule in TriggerRule if may_use_all(make.trigger(rule=rule, severe=False))}
    assert allowed == {TriggerRule.NON_FINITE, TriggerRule.INTERNAL, TriggerRule.FORCED}
    assert severe(make.trigger(severe=True))


@pytest.mark.parametrize(
    ("opened", "allowed", "step", "total", "early"),
    [
        (0, 1, 0, 1000, False),
        (1, 2, 400, 1000, True),
        (1, 2, 600, 1000, False),  # as much of the run is gone
        (2, 10, 10, 1000, False),  # less than half of the budget
        (5, 10, 400, 1000, True),
        (5, 10, 500, 1000, False),
        (0, 0, 10, 1000, False),
    ],
)
def test_a_budget_is_spent_early(opened, allowed, step, total, early) -> None:
    assert spent_early(opened, allowed, step, total) is early
    found = allow(make.trigger(), 6, [], spent_early=early)
    assert found is not None
    assert (found.candidates, found.grounds) == (
        (3, Grounds.SPENT_EARLY) if early else (6, Grounds.FIRST)
    )


def test_a_smaller_branch_has_the_same_rungs_and_says_why_in_its_decision() -> None:
    rules, allowance = BranchRules(), Allowance(candidates=3, most=6, grounds=Grounds.AGAIN)
    smaller = rules.within(allowance)
    assert (smaller.rungs, smaller.confirm_steps) == (rules.rungs, rules.confirm_steps)
    assert (rules.confirm_finalists, smaller.confirm_finalists) == (2, 1)
    said = smaller.recorded()
    assert (said["candidates"], said["topK"], said["grounds"]) == (3, 6, "Again")


def test_what_earlier_versions_recorded_stays_what_it_was() -> None:
    assert "allowance" not in plain(BranchRules())
    assert "grounds" not in BranchRules().recorded()
    assert "severe" not in plain(make.trigger())


def test_every_ground_has_words() -> None:
    said = {Allowance(candidates=1, most=2, grounds=one).words for one in Grounds}
    assert len(said) == len(Grounds)
    assert Allowance(candidates=3, most=6, grounds=Grounds.AGAIN).words.startswith("3 of 6")
    assert Allowance(candidates=6, most=6, grounds=Grounds.FIRST).words.startswith("all 6")
