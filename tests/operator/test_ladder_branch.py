"""The policy Ladder through a real operator: one rollout, adopted without a comparison."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forkcast.actions import Action
from forkcast.decision import Decision, Outcome
from forkcast.records import StateKind, TriggerRule
from forkcast_operator.rules import branch_rules
from forkcast_wire import keys
from forkcast_wire.documents import lineage_head
from forkcast_wire.store import read_document

sys.path.insert(0, str(Path(__file__).parent))
from test_loan_branch import CALM, CUT
from test_local_world import SPEC, publish_trials, state

from tests.make import saved_state

LADDER = SPEC.model_copy(
    update={"branching": SPEC.branching.model_copy(update={"policy": "Ladder"})}
)
AGAIN = replace(CALM, rule=TriggerRule.SINGLE, onset_step=99)


def test_the_second_trouble_in_a_row_halves_the_rate(operate) -> None:
    operator, store, monitor = operate(AGAIN, CUT, spec=LADDER)
    for _ in range(60):
        if not operator.work():
            break
        publish_trials(store)
        if "collapse/2" in monitor.directives:
            where = keys.state(StateKind.CHECKPOINT, 2, 1, 101)
            saved_state(store, state(StateKind.CHECKPOINT, where, 101, 2))
    decision = read_document(store, Decision, keys.branch_file(AGAIN.id, "decision"))
    assert decision is not None
    assert [(one.candidate, one.rung) for one in decision.trials] == [("c000", 1)]
    assert decision.outcome is Outcome.ACCEPTED
    assert decision.action == Action(learning_rate_scale=0.5, rewind_steps=2)
    entry = lineage_head(store)
    assert entry is not None
    assert (entry.epoch, entry.state) == (2, decision.adopted)


def test_the_ladder_pays_nothing_back(operate) -> None:
    operator, store, _ = operate(CALM, CUT, spec=LADDER)
    assert not operator.work()
    assert store.head(keys.suppressed(CALM)) is not None


@pytest.mark.parametrize("left", [10, 900])
def test_it_has_one_rung_and_no_confirmation(left) -> None:
    rules = branch_rules(LADDER, replace(AGAIN, step=1000 - left))
    assert (rules.rungs, rules.confirm_steps) == ((1,), 0)
