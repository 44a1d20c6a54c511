"""The fixed rule: which step, which action, and that it keeps the machine's promises."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast import ladder
from forkcast.actions import Action
from forkcast.branch_rules import BranchRules, Policy
from forkcast.decision import Outcome, Verdict
from forkcast.phases import Finished

sys.path.insert(0, str(Path(__file__).parent))
from simulator import SimWorld, run_to_end, state, trigger
from test_loan import entry

RULES = BranchRules(rungs=(ladder.RUNG,), confirm_steps=0, policy=Policy.LADDER)
BASES = (state(990), state(790))
AT = replace(trigger(1000, epoch=3), onset_step=998)
ACTIONS = (
    Action(skip_batches=11, rewind_steps=10),
    Action(learning_rate_scale=0.5, rewind_steps=10),
    Action(skip_batches=200, rewind_steps=210),
)


class LadderWorld(SimWorld):
    """The simulator, drafting as the ladder does."""

    def _draft(self):
        return ladder.draft(self.trigger, self.bases, [])


@pytest.mark.parametrize(
    ("ends", "step"),
    [
        ((), 0),
        ((499,), 0),  # 501 steps ago
        ((500,), 1),
        ((300, 700), 2),
        ((100, 700), 1),  # the one before that was 599 steps earlier
        ((600, 700, 800), 2),
    ],
)
def test_a_relapse_climbs_one_step(ends, step) -> None:
    lineage = [entry(n, 1.0, base=end - 2, end=end) for n, end in enumerate(ends, start=1)]
    assert ladder.step_of(AT, lineage) == step
    assert ladder.action_of(AT, BASES, lineage) == ACTIONS[step]


def test_what_came_later_does_not_count() -> None:
    assert ladder.step_of(replace(AT, epoch=0), [entry(1, 1.0, base=990, end=1001)]) == 0


@settings(max_examples=500)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_one_unverified_rollout_is_adopted_once_whatever_crashes(quality, chaos) -> None:
    def world(seed: int, **faults) -> LadderWorld:
        return LadderWorld(trigger(), quality=quality, chaos=random.Random(seed), **faults)

    calm, rough = world(0), world(chaos, crash_rate=0.2, fault_rate=0.1)
    for one in (calm, rough):
        end = run_to_end(one, RULES)
        assert isinstance(end, Finished)
        assert not one.violations
        assert set(one.rollouts) == ({"c000"} if one.bases else set())  # retention may be faster
        assert not one.pins
        assert len(one.adopted) == (end.outcome is Outcome.ACCEPTED)
    assert calm.decision is not None
    if rough.bases == calm.bases:
        assert rough.decision == calm.decision


@pytest.mark.parametrize("quality", range(40))
def test_a_replay_that_died_adopts_nothing(quality) -> None:
    world = LadderWorld(trigger(), quality=quality)
    run_to_end(world, RULES)
    assert world.decision is not None
    judged = world.decision.judgements[0]
    accepted = judged.verdict is Verdict.ACCEPTED
    assert (world.decision.adopted is not None) == accepted
    expected = Outcome.ACCEPTED if accepted else Outcome.NO_ACTION
    assert world.decision.outcome is expected
    assert world.decision.rules["policy"] == "Ladder"
