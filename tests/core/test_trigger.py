"""Which rule fires at a row, and when the detector offers to give a cut learning rate back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.departures import TierRules
from forkcast.records import Tier, TriggerRule
from forkcast.trigger import EVENT_RATE, VALIDATION, Fired, TriggerMachine, TriggerRules

RULES = TriggerRules(tiers=TierRules(patience_rows=3, cooldown_steps=0), calm_steps=10)
CALM = TriggerRule.CALM


@dataclass
class Says:
    patient: bool
    severe: bool = False
    healed: bool = True
    rule: TriggerRule | None = None


QUIET, HIGH, EVENT, NON_FINITE = "quiet", "high", "event", "nan"
#: u of signal volatility.
US = {QUIET: 0.0, HIGH: 2.6, EVENT: 3.3, NON_FINITE: 0.0}


def fold(
    machine: TriggerMachine,
    step: int,
    kind: str = QUIET,
    *,
    epoch: int = 1,
    judged: bool = True,
    validation: float | None = None,
    more: dict[str, float] | None = None,
) -> Fired | None:
    us = {"volatility": US[kind], **(more or {})}
    signals = {
        "volatility": Says(patient=True, healed=not US[kind]),
        "entropy": Says(patient=False, rule=TriggerRule.INTERNAL),
        "drift": Says(patient=False, healed=False, rule=TriggerRule.SLOW),
    }
    z = max(us.values())
    finite = kind != NON_FINITE
    return machine.fold(
        step, epoch, us, signals, z, judged=judged, finite=finite, validation_loss=validation
    )


def fired(machine: TriggerMachine, steps: range, kind: str = QUIET, **more):
    found = [(step, fold(machine, step, kind, **more)) for step in steps]
    return [(step, one.rule) for step, one in found if one is not None]


@pytest.mark.parametrize("severe", [False, True])
def test_a_trigger_says_whether_its_signal_calls_the_row_severe(severe) -> None:
    says = {
        "volatility": Says(patient=True, severe=severe, healed=False),
        "drift": Says(patient=False, severe=not severe),
    }
    machine, us = TriggerMachine(RULES), {"volatility": 3.3, "drift": 0.0}
    found = [machine.fold(s, 1, us, says, 3.3, judged=True, finite=True) for s in range(4)]
    asked = [one for one in found if one is not None and one.tier >= Tier.BRANCH]
    assert [one.severe for one in asked] == [severe]


def test_each_kind_of_departure_has_its_rule() -> None:
    rule = TriggerRule
    assert fired(TriggerMachine(RULES), range(1), EVENT) == [(0, rule.SINGLE)]
    assert fired(TriggerMachine(RULES), range(3), HIGH) == [(2, rule.CONSECUTIVE)]
    assert fired(TriggerMachine(RULES), range(1), NON_FINITE) == [(0, rule.NON_FINITE)]
    slow = fold(TriggerMachine(RULES), 0, more={"drift": 3.3})
    assert slow == Fired("drift", rule.SLOW, Tier.BRANCH, 0)
    inside = fold(TriggerMachine(RULES), 0, more={"entropy": 3.3})
    assert inside == Fired("entropy", rule.INTERNAL, Tier.BRANCH, 0)


def test_an_event_is_no_trigger_until_its_patience_is_over() -> None:
    machine = TriggerMachine(RULES)
    found = [fold(machine, step, EVENT) for step in range(6)]
    assert [(at, one.tier) for at, one in enumerate(found) if one] == [
        (0, Tier.EVENT),
        (3, Tier.BRANCH),
    ]


FALLING = [3.0 - 0.1 * i + 0.01 * (-1) ** i for i in range(8)]
#: A rougher one: two validations of 2.45 after it are worse, and not beyond chance.
ROUGH = [3.0 - 0.1 * i + 0.04 * (-1) ** (i + 1) for i in range(8)]


def validated(losses: list[float], **more: float) -> list[Fired]:
    """What fires when a validation comes every 100 steps, after each row with the signals ``more``."""
    machine = TriggerMachine(RULES)
    found = []
    for n, loss in enumerate(losses):
        us = more if n >= len(FALLING) else {}
        found.append(fold(machine, 100 * n, epoch=0, validation=loss, more=us))
    return [one for one in found if one is not None]


def test_a_second_worse_validation_in_a_row_fires() -> None:
    (one,) = validated([*FALLING, 2.6, 2.6, 2.6])
    assert (one.name, one.rule) == (VALIDATION, TriggerRule.VALIDATION_REGRESSION)
    assert (one.tier, one.onset) == (Tier.BRANCH, 800)
    assert "2 running" in one.note


@pytest.mark.parametrize(
    ("more", "tier"),
    [
        ({}, Tier.EVENT),
        ({"drift": 2.0}, Tier.BRANCH),
        ({"volatility": 2.0}, Tier.BRANCH),
        ({"drift": 1.0}, Tier.EVENT),
        ({"entropy": 3.0}, Tier.EVENT),  # a level that healthy runs have, too
    ],
)
def test_a_validation_is_borne_out_by_the_training_loss(more: dict[str, float], tier: Tier) -> None:
    """Data that are harder to learn move no validation loss: the two together are the state of the run."""
    (one,) = validated([*ROUGH, 2.45, 2.45], **more)
    assert (one.name, one.tier) == (VALIDATION, tier)


def asked_at(machine: TriggerMachine, steps: range, **more) -> list[tuple[int, str, Tier]]:
    """Step, name and tier of what fires."""
    found = [(step, fold(machine, step, **more)) for step in steps]
    return [(step, one.name, one.tier) for step, one in found if one is not None]


def test_a_drift_that_follows_a_branch_is_the_same_cause() -> None:
    machine = TriggerMachine(RULES)
    assert asked_at(machine, range(4), kind=EVENT)[-1] == (3, "volatility", Tier.BRANCH)
    one = fold(machine, 30, EVENT, more={"drift": 3.3})
    assert one is not None
    assert (one.name, one.tier, one.onset) == ("drift", Tier.EVENT, 30)
    assert "the same cause as the branch asked for at step 3" in one.note


def test_what_lasts_longer_than_one_cause_asks_again() -> None:
    rules = replace(RULES, tiers=TierRules(patience_rows=3))
    machine = TriggerMachine(rules)
    drift = {"drift": 3.3}
    assert asked_at(machine, range(4), epoch=0, kind=EVENT)[-1] == (3, "volatility", Tier.BRANCH)
    assert asked_at(machine, range(4, 30), epoch=0) == []
    # told at once as an event, asked for when the first branch is far enough back, and not told in between
    found = asked_at(machine, range(30, 400), epoch=0, more=drift)
    assert [(name, tier) for _, name, tier in found] == [
        ("drift", Tier.EVENT),
        ("drift", Tier.BRANCH),
    ]


def test_what_gets_worse_in_its_own_way_asks_for_its_own_branch() -> None:
    machine = TriggerMachine(RULES)
    asked_at(machine, range(4), kind=EVENT)
    assert asked_at(machine, range(30, 31), more={"entropy": 3.3}) == [(30, "entropy", Tier.BRANCH)]
    assert asked_at(machine, range(40, 41), kind=NON_FINITE) == [(40, "nonFinite", Tier.BRANCH)]
    assert asked_at(machine, range(60, 61), kind=QUIET) == []
    assert asked_at(machine, range(61, 65), kind=EVENT)[-1] == (64, "volatility", Tier.BRANCH)


def test_after_a_branch_rows_of_which_nothing_is_said_count() -> None:
    machine = TriggerMachine(RULES)
    assert asked_at(machine, range(4), epoch=0, kind=EVENT)[-1] == (3, "volatility", Tier.BRANCH)
    step = 3
    while not machine.idle:
        step += 1
        fold(machine, step, epoch=0)
    assert 100 < step < 300
    late = fold(machine, 10_000, epoch=0, more={"drift": 3.3})
    assert late is not None
    assert late.tier is Tier.BRANCH


def test_internals_that_came_first_and_a_new_epoch_hide_no_drift() -> None:
    machine = TriggerMachine(RULES)
    assert asked_at(machine, range(1), more={"entropy": 3.3}) == [(0, "entropy", Tier.BRANCH)]
    assert asked_at(machine, range(9, 10), more={"drift": 3.3}) == [(9, "drift", Tier.BRANCH)]
    machine.departures.splice()
    assert asked_at(machine, range(20, 21), epoch=2, more={"drift": 3.3}) == [
        (20, "drift", Tier.BRANCH)
    ]


def test_a_validation_after_a_branch_is_the_same_cause() -> None:
    machine = TriggerMachine(RULES)
    for n, loss in enumerate(FALLING):
        fold(machine, 10 * n, validation=loss)
    asked_at(machine, range(80, 84), kind=EVENT)
    fold(machine, 90, validation=2.6)
    one = fold(machine, 100, validation=2.6)
    assert one is not None
    assert (one.name, one.tier) == (VALIDATION, Tier.EVENT)
    assert "2 running" in one.note
    assert "the same cause as the branch asked for at step 83" in one.note


def test_events_that_become_more_frequent_fire_beside_the_event_that_they_come_with() -> None:
    machine = TriggerMachine(RULES)
    fired_at = []
    for step in range(20_500):
        kind = EVENT if step > 10_000 and step % 600 == 0 else QUIET
        one = fold(machine, step, kind, epoch=0)
        if one is not None and one.rule is TriggerRule.INSTABILITY_RATE:
            fired_at.append(one)
    assert fired_at
    assert fired_at[0].name == EVENT_RATE
    assert fired_at[0].beside is not None
    assert (fired_at[0].beside.name, fired_at[0].beside.tier) == ("volatility", Tier.EVENT)


def test_one_departure_that_lasts_and_asks_again_is_no_rate() -> None:
    rules = replace(RULES, tiers=TierRules(cooldown_steps=200))
    machine = TriggerMachine(rules)
    rows = ((step, EVENT if step > 10_500 else QUIET) for step in range(21_000))
    rules_seen = {one.rule for step, kind in rows if (one := fold(machine, step, kind, epoch=0))}
    assert rules_seen == {TriggerRule.SINGLE}


def test_forced_triggers_come_on_time_and_hide_no_event() -> None:
    machine = TriggerMachine(replace(RULES, force_every_steps=50))
    forced = TriggerRule.FORCED
    assert fired(machine, range(149), epoch=0) == [(50, forced), (100, forced)]
    one = fold(machine, 150, EVENT, epoch=0)
    assert one is not None
    assert one.rule is forced
    assert one.beside == Fired("volatility", TriggerRule.SINGLE, Tier.EVENT, 150)


def test_a_branch_goes_before_what_is_forced() -> None:
    machine = TriggerMachine(replace(RULES, force_every_steps=50))
    one = fold(machine, 50, NON_FINITE)
    assert one is not None
    assert one.rule is TriggerRule.NON_FINITE


def test_after_every_calm_period_one_trigger() -> None:
    machine = TriggerMachine(RULES)
    assert fired(machine, range(100, 131)) == [(109, CALM), (119, CALM), (129, CALM)]


def test_never_in_the_first_epoch_while_warming_up_or_switched_off() -> None:
    assert fired(TriggerMachine(RULES), range(100), epoch=0) == []
    assert fired(TriggerMachine(RULES), range(100), judged=False) == []
    assert fired(TriggerMachine(replace(RULES, calm_steps=0)), range(100)) == []


@pytest.mark.parametrize("kind", [HIGH, EVENT, NON_FINITE])
def test_trouble_starts_the_count_over(kind: str) -> None:
    machine = TriggerMachine(RULES)
    assert fired(machine, range(100, 109)) == []
    fold(machine, 109, kind)
    assert fired(machine, range(110, 121)) == [(119, CALM)]


def test_a_new_epoch_and_unseen_steps_start_the_count_over() -> None:
    machine = TriggerMachine(RULES)
    assert fired(machine, range(100, 108)) == []
    assert fired(machine, range(108, 119), epoch=2) == [(117, CALM)]
    machine.missed(119, 121)
    assert fired(machine, range(122, 136), epoch=2) == [(131, CALM)]


def test_an_open_departure_is_no_calm_however_low_its_rows() -> None:
    machine = TriggerMachine(RULES)
    fold(machine, 99, more={"drift": 3.3})
    assert fired(machine, range(100, 150), more={"drift": 1.0}) == []
    assert fired(machine, range(150, 161), more={"drift": 0.0}) == [(159, CALM)]


def test_a_forced_trigger_is_no_trouble() -> None:
    machine = TriggerMachine(replace(RULES, force_every_steps=104))
    expected = [(104, TriggerRule.FORCED), (109, CALM)]
    assert fired(machine, range(100, 110)) == expected


def test_a_calm_trigger_has_no_departure_to_go_back_behind() -> None:
    machine = TriggerMachine(RULES)
    found = [fold(machine, step, more={"drift": 1.0}) for step in range(10)]
    assert found[-1] == Fired("calm", CALM, Tier.BRANCH, 9)


#: One step: what it shows, and how many steps before it were never seen.
STEPS = st.lists(
    st.tuples(
        st.sampled_from([QUIET] * 12 + [HIGH, EVENT, NON_FINITE]), st.sampled_from([0] * 20 + [3])
    ),
    min_size=1,
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 120))
def test_between_two_calm_triggers_lie_so_many_calm_steps_and_a_restart_changes_nothing(
    steps, cut
) -> None:
    machine, calm, step = TriggerMachine(RULES), 0, 100
    for number, (kind, lost) in enumerate(steps):
        if number == cut:
            state = json.loads(json.dumps(machine.state()))
            machine = TriggerMachine(RULES)
            machine.restore(state)
            assert machine.state() == state
        if lost and number:
            machine.missed(step + 1, step + lost)
        step += 1 + (lost if number else 0)
        calm = calm + 1 if kind == QUIET and not (lost and number) else int(kind == QUIET)
        one = fold(machine, step, kind)
        if one is not None and one.rule is CALM:
            assert calm >= RULES.calm_steps
            assert one.onset == step
            calm = 0
