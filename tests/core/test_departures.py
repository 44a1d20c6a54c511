"""From what signals say of rows to tiers: what begins, heals, asks for a branch, asks again, and ends."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.departures import NON_FINITE, STOP_ROWS, TOGETHER, Departures, Risen, TierRules
from forkcast.records import Tier, TriggerRule

RULES = TierRules(
    z=2.5, consecutive_steps=3, single_z=3.2, patience_rows=10, cooldown_steps=50, quiet_steps=0
)


@dataclass
class Says:
    """What a signal says of its last row."""

    patient: bool = True
    rule: TriggerRule | None = None
    severe: bool = False
    healed: bool = False


class Run:
    """Folds one row after the other: u by signal, and whether a signal has healed, or is severe."""

    def __init__(self, rules: TierRules = RULES, **signals: bool) -> None:
        patience = signals or {"fast": True}
        self.signals = {
            name: Says(patient=patient, rule=None if patient else TriggerRule.SLOW)
            for name, patient in patience.items()
        }
        self.departures = Departures(rules)
        self.step = 0

    def row(
        self,
        u: float | dict[str, float] = 0.0,
        *,
        judged: bool = True,
        finite: bool = True,
        together: float | None = None,
        **says: Any,
    ) -> Risen | None:
        us = u if isinstance(u, dict) else dict.fromkeys(self.signals, u)
        for name, said in self.signals.items():
            changes = says if "patient" not in says else {}
            self.signals[name] = replace(
                said, **{"healed": not us.get(name), "severe": False, **changes}
            )
        self.step += 1
        most = max(us.values(), default=0.0) if together is None else together
        return self.departures.fold(
            self.step, us, self.signals, most if judged else 0.0, judged=judged, finite=finite
        )

    def rows(self, *us: float | dict[str, float], **says: Any) -> list[tuple[int, Tier]]:
        """(step, tier) of what rose."""
        found = []
        for u in us:
            risen = self.row(u, **says)
            if risen is not None:
                found.append((risen.onset, self.step, risen.tier))
        return found


def test_one_row_over_the_single_threshold_is_an_event_and_two_over_the_other_are_none() -> None:
    assert Run().rows(0, 2.6, 2.6, 0, 2.6, 2.6) == []
    assert Run().rows(0, 2.6, 2.6, 2.6) == [(2, 4, Tier.EVENT)]
    assert Run().rows(0, 1.0, 3.3) == [(2, 3, Tier.EVENT)]
    assert Run().rows(3.2, 2.5, 2.5, 2.5) == []  # over, not at


def test_its_onset_is_where_u_left_nothing() -> None:
    run = Run()
    run.rows(0.1, 0, 0, 0.3, 0.2, 1.0)
    risen = run.row(3.3)
    assert risen == Risen("fast", Tier.EVENT, 4)


def test_one_that_heals_within_its_patience_asks_for_nothing() -> None:
    run = Run()
    assert run.rows(3.3) == [(1, 1, Tier.EVENT)]
    assert run.rows(*[4.0] * 8) == []
    assert run.rows(1.0, 0.8, healed=True) == []
    assert run.departures.tier(0.8) is Tier.WATCH
    assert run.rows(0) == []
    assert run.departures.tier(0) is Tier.CALM
    assert not run.departures.open


def test_one_that_does_not_asks_for_a_branch_when_its_patience_is_over() -> None:
    run = Run()
    assert run.rows(*[3.3] * 12) == [(1, 1, Tier.EVENT), (1, 11, Tier.BRANCH)]
    assert run.departures.tier(3.3) is Tier.BRANCH
    assert run.departures.open


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_patience_is_counted_in_rows(patience: int) -> None:
    run = Run(replace(RULES, patience_rows=patience))
    tiers = run.rows(*[3.3] * 6)
    assert tiers[-1] == (1, 1 + patience, Tier.BRANCH)
    assert len(tiers) == (2 if patience else 1)


def test_a_healed_one_that_comes_back_has_its_patience_again() -> None:
    run = Run()
    run.rows(3.3)
    run.rows(1.0, healed=True)
    assert run.rows(*[2.0] * 12) == [(1, 13, Tier.BRANCH)]


def test_a_severe_one_does_not_wait() -> None:
    run = Run()
    assert run.rows(3.3, severe=True) == [(1, 1, Tier.BRANCH)]
    run = Run()
    assert run.rows(3.3, 3.3) == [(1, 1, Tier.EVENT)]
    assert run.rows(4.0, severe=True) == [(1, 3, Tier.BRANCH)]
    run = Run()
    run.rows(3.3)
    run.rows(2.0, healed=True)
    assert run.rows(2.4, severe=True) == [(1, 3, Tier.BRANCH)]


def test_one_that_becomes_severe_after_it_asked_asks_once_more() -> None:
    run = Run()
    assert run.rows(*[3.3] * 11)[-1] == (1, 11, Tier.BRANCH)
    assert run.rows(4.0, 4.0, severe=True) == [(1, 12, Tier.BRANCH)]
    assert run.rows(3.3, healed=False) == []
    assert run.rows(4.0, severe=True) == []


def test_one_that_has_faded_asks_for_nothing_until_it_rises_again() -> None:
    run = Run()
    run.rows(3.3)
    assert run.rows(*[1.5] * 30, healed=False) == []
    assert run.departures.open
    assert run.rows(1.7, healed=False) == [(1, 32, Tier.BRANCH)]


def test_a_level_that_stands_for_long_says_no_more_than_one_row_of_it() -> None:
    assert Run(slow=False).rows(*[3.1] * 50) == []
    assert Run(slow=False).rows(*[3.1] * 50, 3.3) == [(1, 51, Tier.BRANCH)]


def test_one_of_no_patience_does_not_wait() -> None:
    assert Run(slow=False).rows(3.3) == [(1, 1, Tier.BRANCH)]


def test_one_that_lasts_asks_again_after_twice_as_long_each_time() -> None:
    run = Run(slow=False)
    asked = [step for _, step, tier in run.rows(*[3.3] * 800) if tier is Tier.BRANCH]
    assert asked == [1, 51, 151, 351, 751]


def test_one_that_heals_meanwhile_does_not_ask_again_nor_does_any_without_a_cooldown() -> None:
    run = Run()
    run.rows(*[3.3] * 12)
    assert run.rows(*[2.0] * 200, healed=True) == []
    assert Run(replace(RULES, cooldown_steps=0), slow=False).rows(*[3.3] * 500) == [
        (1, 1, Tier.BRANCH)
    ]


def test_it_is_armed_again_by_its_state_and_not_by_time() -> None:
    run = Run()
    assert run.rows(3.3, 0.6, 3.3) == [(1, 1, Tier.EVENT), (3, 3, Tier.EVENT)]


def test_a_second_event_has_an_onset_of_its_own() -> None:
    """Regression: one that never came back to 0 kept the onset of the departure before."""
    run = Run()
    assert run.rows(1.0, 3.3, 0.3, 0.3, 3.3) == [(1, 2, Tier.EVENT), (4, 5, Tier.EVENT)]


def test_one_that_hovers_is_told_of_once_and_one_that_was_nearly_over_again() -> None:
    run = Run(slow=False)
    hovering = [3.3, 3.3, 3.3, 2.4] * 10
    assert run.rows(*hovering) == [(1, 1, Tier.BRANCH)]
    run = Run()
    assert run.rows(3.3, 1.5, 3.3) == [(1, 1, Tier.EVENT), (1, 3, Tier.EVENT)]
    run = Run()
    assert run.rows(3.3, 2.0, 3.3) == [(1, 1, Tier.EVENT)]


def test_a_slow_one_that_lasts_hides_no_spike() -> None:
    run = Run(slow=False, fast=True)
    us = {"slow": 5.0, "fast": 0.0}
    assert run.row(us) == Risen("slow", Tier.BRANCH, 1)
    run.rows(*[us] * 20)
    spiked = [run.row({"slow": 5.0, "fast": 3.3}) for _ in range(11)]
    assert [one for one in spiked if one is not None] == [
        Risen("fast", Tier.EVENT, 22),
        Risen("fast", Tier.BRANCH, 22),
    ]


def test_of_two_at_a_row_the_higher_is_told() -> None:
    run = Run(fast=True, slow=False)
    assert run.row({"fast": 3.3, "slow": 3.3}) == Risen("slow", Tier.BRANCH, 1)


def test_a_signal_that_says_nothing_at_a_row_keeps_its_departure() -> None:
    run = Run(fast=True, slow=False)
    run.row({"fast": 0.0, "slow": 3.3})
    assert run.rows(*[{"fast": 0.0}] * 5) == []
    assert run.departures.open
    assert run.row({"fast": 0.0, "slow": 3.3}) is None


def test_what_no_signal_says_alone_is_an_event_of_all_together() -> None:
    run = Run(fast=True, other=True)
    us = {"fast": 2.0, "other": 2.0}
    assert run.row(us, together=3.3) == Risen(TOGETHER, Tier.EVENT, 1)
    found = [run.row(us, together=3.3) for _ in range(10)]
    assert [one for one in found if one] == [Risen(TOGETHER, Tier.BRANCH, 1)]


def test_a_signal_that_answers_for_it_is_told_of_alone() -> None:
    run = Run(fast=True, other=True)
    run.row({"fast": 2.0, "other": 2.0}, together=3.3)
    risen = run.row({"fast": 3.3, "other": 2.0}, together=4.6)
    assert risen is not None
    assert risen.name == "fast"
    assert run.rows(*[{"fast": 3.3, "other": 2.0}] * 3, together=4.6) == []


def test_nothing_begins_before_the_level_is_known_but_what_is_not_finite() -> None:
    run = Run(slow=False)
    assert [run.row(8.0, judged=False) for _ in range(20)] == [None] * 20
    assert run.row(8.0, judged=False, finite=False) == Risen(NON_FINITE, Tier.BRANCH, 21)
    assert run.row(8.0) is not None


def test_what_is_not_finite_asks_once_and_stops_when_nothing_else_comes() -> None:
    run = Run()
    found = [run.row(0, finite=False) for _ in range(4 * STOP_ROWS)]
    told = [(at, one.tier, one.onset) for at, one in enumerate(found, 1) if one is not None]
    assert told == [(1, Tier.BRANCH, 1), (STOP_ROWS, Tier.STOP, 1)]
    assert run.departures.tier(0) is Tier.STOP
    assert run.row(0) is None
    assert run.departures.tier(0) is Tier.CALM
    assert run.row(0, finite=False) == Risen(NON_FINITE, Tier.BRANCH, run.step)


def test_rows_that_are_finite_between_leave_something_to_train() -> None:
    run = Run()
    tiers = {
        one.tier
        for number in range(20 * STOP_ROWS)
        if (one := run.row(0, finite=number % STOP_ROWS == 0))
    }
    assert tiers == {Tier.BRANCH}


def test_in_a_silence_nothing_begins_but_what_is_not_finite() -> None:
    run = Run()
    run.departures.quiet(30)
    assert run.rows(*[8.0] * 29) == []
    assert run.row(0, finite=False) is not None
    assert run.rows(8.0) == [(1, 31, Tier.EVENT)]


def test_the_silence_of_a_preset_follows_each_branch_and_ends_what_is_open() -> None:
    run = Run(replace(RULES, quiet_steps=20, cooldown_steps=0), slow=False)
    assert [step for _, step, _ in run.rows(*[8.0] * 50)] == [1, 21, 41]
    run = Run(replace(RULES, quiet_steps=20, cooldown_steps=0))
    found = [run.row(0, finite=False) for _ in range(10)]
    assert sum(one is not None for one in found) == 1


def test_after_a_splice_nothing_is_open() -> None:
    run = Run()
    run.rows(*[3.3] * 5)
    run.departures.splice()
    assert not run.departures.open
    assert run.rows(3.3) == [(6, 6, Tier.EVENT)]


def test_what_is_muted_is_an_event_until_it_is_over() -> None:
    run = Run(slow=False)
    run.rows(3.3)
    run.departures.mute("slow")
    assert run.departures.tier(3.3) is Tier.EVENT
    assert run.rows(*[3.3, 1.0] * 5, *[8.0] * 3000, severe=True) == []
    assert run.departures.open
    assert run.rows(0, 3.3) == [(run.step, run.step, Tier.BRANCH)]


def test_a_tail_that_is_none_is_watched() -> None:
    run = Run()
    run.row(1.7)
    assert run.departures.tier(1.7) is Tier.WATCH
    assert run.departures.tier(1.5) is Tier.CALM


ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 1.0, 2.0, 2.6, 3.3, 8.0]),
        st.sampled_from([0.0, 0.0, 1.0, 2.6, 3.3]),
        st.booleans(),  # healed
        st.sampled_from([False] * 9 + [True]),  # severe
        st.sampled_from([True] * 9 + [False]),  # finite
        st.sampled_from([True] * 9 + [False]),  # judged
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 120), st.sampled_from([0, 5]), st.sampled_from([0, 3, 10]))
def test_whatever_comes_a_restart_is_bit_equal_and_a_branch_was_an_event_first(
    rows, cut, quiet, patience
) -> None:
    rules = replace(RULES, cooldown_steps=8, quiet_steps=quiet, patience_rows=patience)
    run = Run(rules, fast=True, slow=False)
    other = Run(rules, fast=True, slow=False)
    for number, (fast, slow, healed, severe, finite, judged) in enumerate(rows):
        if number == cut:
            other.departures.restore(json.loads(json.dumps(run.departures.state())))
            other.step = run.step
        us = {"fast": fast, "slow": slow}
        more = {"healed": healed, "severe": severe, "finite": finite, "judged": judged}
        risen = run.row(us, together=fast + slow, **more)
        if number >= cut:
            assert other.row(us, together=fast + slow, **more) == risen
            assert other.departures.state() == run.departures.state()
        if risen is not None:
            assert risen.tier >= Tier.EVENT
            assert 0 < risen.onset <= run.step
            assert judged or risen.name == NON_FINITE or risen.tier > Tier.EVENT
            assert finite == (risen.name != NON_FINITE)
    assert len(json.dumps(run.departures.state())) < 400
