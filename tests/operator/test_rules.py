"""A manifest's branching as rules and lattice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkcast.records import StateRef, Trigger, TriggerRule
from forkcast_operator.rules import branch_rules, lattice_of
from forkcast_wire.manifest import TrainingRunSpec
from tests.make import state_ref


def spec(total: int = 1000, **training) -> TrainingRunSpec:
    return TrainingRunSpec.model_validate(
        {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": total, **training},
        }
    )


def trigger(step: int) -> Trigger:
    return Trigger(
        run_uid="u",
        epoch=0,
        step=step,
        onset_step=step,
        rule=TriggerRule.FORCED,
        z=0.0,
        index=0.0,
        components={},
        thresholds={},
    )


def base(step: int) -> StateRef:
    return state_ref(step)


@pytest.mark.parametrize(
    ("left", "rungs", "confirm"),
    [(900, (10, 25, 50), 200), (120, (10, 25, 50), 120), (50, (10, 25), 50), (11, (10,), 11)],
)
def test_the_confirm_rung_moves_forward_and_never_away(left, rungs, confirm) -> None:
    rules = branch_rules(spec(), trigger(1000 - left))
    assert (rules.rungs, rules.confirm_steps) == (rungs, confirm)


@pytest.mark.parametrize("left", [0, 1, 10])
def test_no_branch_where_nothing_fits(left) -> None:
    with pytest.raises(ValueError, match="steps are left"):
        branch_rules(spec(), trigger(1000 - left))


def test_arc_needs_three_micro_batches() -> None:
    bases = (base(75), base(0))
    assert (
        "ARC" not in lattice_of(spec(gradientAccumulationSteps=2), trigger(100), bases, ()).clipping
    )
    wide = lattice_of(spec(gradientAccumulationSteps=3), trigger(100), bases, ())
    assert "ARC" in wide.clipping
    assert wide.rewind_steps == (25, 100)


def test_a_calm_run_goes_back_to_the_newest_state_only() -> None:
    calm = replace(trigger(100), rule=TriggerRule.CALM)
    assert branch_rules(spec(), calm).depths == (0,)


def test_skipping_takes_the_triggers_own_batch_with_it_from_every_base() -> None:
    branching = {"research": True, "actions": {"skipBatch": True}}
    given = TrainingRunSpec.model_validate(
        {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 1000},
            "branching": branching,
        }
    )
    fired, bases = trigger(500), (base(495), base(440))
    lattice = lattice_of(given, fired, bases, [])
    skipping = [action for action in lattice.actions() if action.skip_batches]
    assert skipping
    for action in skipping:
        start = fired.step - action.rewind_steps  # the first batch that is not taken
        assert start + action.skip_batches > fired.step
    assert lattice_of(spec(), fired, bases, []).skip_batches == (0,)
