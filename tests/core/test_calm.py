"""Calm triggers: when the detector offers to give a cut learning rate back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import Index, StepStats, Trigger, TriggerRule
from forkcast.trigger import TriggerMachine, TriggerRules
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty

RULES = TriggerRules(calm_steps=10, cooldown_steps=5, warmup_steps=4)
#: One step: what it shows, and how many steps before it were never seen.
QUIET, HIGH, SPIKED, NON_FINITE, FORCED = "quiet", "high", "spiked", "nan", "forced"
STEPS = st.lists(
    st.tuples(
        st.sampled_from([QUIET] * 12 + [HIGH, SPIKED, NON_FINITE]), st.sampled_from([0] * 20 + [3])
    ),
    min_size=1,
    max_size=120,
)


def fold(
    machine: TriggerMachine, step: int, kind: str = QUIET, *, epoch: int = 1, ready: bool = True
) -> Trigger | None:
    z = 3.0 if kind == HIGH else 0.5
    index = Index(step=step, epoch=epoch, components={}, index=0.0, z=z, ready=ready)
    return machine.fold(index, finite=kind != NON_FINITE, spiked=kind == SPIKED)


def fired(machine: TriggerMachine, steps: range, **more) -> list[tuple[int, TriggerRule]]:
    found = [fold(machine, step, **more) for step in steps]
    return [(one.step, one.rule) for one in found if one is not None]


def test_after_every_calm_period_one_trigger() -> None:
    machine = TriggerMachine(RULES, "u")
    calm = TriggerRule.CALM
    assert fired(machine, range(100, 131)) == [(109, calm), (119, calm), (129, calm)]


def test_never_in_the_first_epoch_while_warming_up_or_switched_off() -> None:
    assert fired(TriggerMachine(RULES, "u"), range(100), epoch=0) == []
    assert fired(TriggerMachine(RULES, "u"), range(100), ready=False) == []
    assert fired(TriggerMachine(replace(RULES, calm_steps=0), "u"), range(100)) == []


@pytest.mark.parametrize("kind", [HIGH, SPIKED, NON_FINITE])
def test_trouble_starts_the_count_over_in_a_cooldown_too(kind) -> None:
    machine = TriggerMachine(RULES, "u")
    machine.quiet(1000)
    assert fired(machine, range(100, 109)) == []
    fold(machine, 109, kind)
    machine._quiet_until = 0
    assert fired(machine, range(110, 121)) == [(119, TriggerRule.CALM)]


def test_a_new_epoch_and_unseen_steps_start_the_count_over() -> None:
    machine = TriggerMachine(RULES, "u")
    assert fired(machine, range(100, 108)) == []
    assert fired(machine, range(108, 119), epoch=2) == [(117, TriggerRule.CALM)]
    # 3 steps lost, so blind for 3: the first judged step is 125, the tenth 134
    assert fired(machine, range(122, 136), epoch=2) == [(134, TriggerRule.CALM)]


def test_it_waits_for_the_cooldown_and_opens_none() -> None:
    machine = TriggerMachine(RULES, "u")
    machine.quiet(130)
    assert fired(machine, range(100, 131)) == [(130, TriggerRule.CALM)]
    trigger = fold(machine, 131, NON_FINITE)
    assert trigger is not None
    assert trigger.rule is TriggerRule.NON_FINITE


def test_a_forced_trigger_is_no_trouble() -> None:
    machine = TriggerMachine(replace(RULES, force_every_steps=104, cooldown_steps=0), "u")
    expected = [(104, TriggerRule.FORCED), (109, TriggerRule.CALM)]
    assert fired(machine, range(100, 110)) == expected


def test_it_has_no_departure_to_go_back_behind() -> None:
    machine = TriggerMachine(RULES, "u")
    index = Index(step=0, epoch=1, components={}, index=0.0, z=2.0, ready=True)  # above 1
    found = [machine.fold(replace(index, step=step), finite=True) for step in range(10)]
    assert found[-1] is not None
    assert (found[-1].step, found[-1].onset_step) == (9, 9)


@settings(max_examples=200)
@given(STEPS, st.integers(0, 120))
def test_between_two_calm_triggers_lie_so_many_calm_steps_and_a_restart_changes_nothing(
    steps, cut
) -> None:
    machine, calm, step = TriggerMachine(RULES, "u"), 0, 100
    for number, (kind, lost) in enumerate(steps):
        if number == cut:
            state = json.loads(json.dumps(machine.state()))
            machine = TriggerMachine(RULES, "u")
            machine.restore(state)
            assert machine.state() == state
        step += 1 + (lost if number else 0)
        calm = calm + 1 if kind == QUIET and not (lost and number) else 0
        trigger = fold(machine, step, kind)
        if trigger is not None and trigger.rule is TriggerRule.CALM:
            assert calm >= RULES.calm_steps
            assert trigger.id == f"e1-t{step}"
            calm = 0


@settings(max_examples=20)
@given(st.integers(1, 399))
def test_a_detector_restored_at_any_step_offers_at_the_same_steps(cut) -> None:
    config = configure(Uncertainty(window=32, warmup_steps=20, calm_steps=50, cooldown_steps=30))

    def stats(step: int) -> StepStats:
        loss = 3.0 + 0.1 * math.sin(step) + 0.05 * math.sin(7.3 * step)
        return StepStats(
            run_uid="u",
            epoch=int(step >= 100),
            attempt=0,
            rank=0,
            step=step,
            loss=loss,
            grad_norm=1.0,
            grad_norm_clipped=1.0,
            learning_rate=1e-3,
            tokens=step,
        )

    def triggers(detector: Detector, steps: range) -> list[Trigger]:
        return [t for step in steps if (t := detector.fold(stats(step))[1]) is not None]

    whole, first, second = (Detector(config, "u") for _ in range(3))
    expected = triggers(whole, range(400))
    assert any(one.rule is TriggerRule.CALM for one in expected)
    got = triggers(first, range(cut))
    second.restore(json.loads(json.dumps(first.state())))
    assert got + triggers(second, range(cut, 400)) == expected
    assert second.state() == whole.state()
