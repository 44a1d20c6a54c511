"""A Calm trigger on its way through a real operator: a branch that only raises, or none."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forkcast.actions import Action
from forkcast.decision import Decision, Draft, Outcome
from forkcast.lineage import LineageEntry
from forkcast.loan import rate_in_force
from forkcast.records import StateKind, TriggerRule
from forkcast_wire import keys
from forkcast_wire.documents import lineage_entries
from forkcast_wire.manifest import Budget
from forkcast_wire.store import read_document

sys.path.insert(0, str(Path(__file__).parent))
from test_local_world import SPEC, TRIGGER, publish_trials, state

from tests.make import saved_state

CALM = replace(TRIGGER, epoch=1, rule=TriggerRule.CALM, onset_step=100, z=0.4)
CUT = LineageEntry(
    epoch=1,
    run_uid="u",
    branch="run-e0-t50",
    decision_digest="d",
    action=Action(learning_rate_scale=0.8, clipping="ZClip", rewind_steps=10),
    state=state(StateKind.ROLLOUT, "rollouts/e0-t50/c000/end-000010", 60),
    base_step=40,
    trigger_step=50,
)


def test_with_a_cut_outstanding_a_branch_offers_its_inverse_and_nothing_else(operate) -> None:
    operator, store, monitor = operate(CALM, CUT)
    for _ in range(60):
        if not operator.work():
            break
        publish_trials(store)
        if "collapse/2" in monitor.directives:
            where = keys.state(StateKind.CHECKPOINT, 2, 1, 300)
            saved_state(store, state(StateKind.CHECKPOINT, where, 300, 2))
    draft = read_document(store, Draft, keys.branch_file(CALM.id, "draft"))
    assert draft is not None
    assert {one.action for one in draft.candidates} == {
        Action(learning_rate_scale=1.25, rewind_steps=2),
        Action(learning_rate_scale=1.25**0.5, rewind_steps=2),
    }
    decision = read_document(store, Decision, keys.branch_file(CALM.id, "decision"))
    assert decision is not None
    assert [base.step for base in decision.bases] == [98]
    assert decision.outcome is Outcome.ACCEPTED  # these rollouts came out better than the control
    assert {one.rung for one in decision.judgements} == {200}  # confirmed as any other
    assert rate_in_force(lineage_entries(store), 2) == 0.8 * decision.action.learning_rate_scale


@pytest.mark.parametrize("scale", [1.0, 1.1], ids=["no cut", "a raise"])
def test_without_one_it_is_suppressed_and_costs_no_budget(operate, scale) -> None:
    entry = replace(CUT, action=Action(learning_rate_scale=scale, clipping="ZClip"))
    operator, store, _ = operate(CALM, entry)
    assert not operator.work()
    assert list(store.list("branches/")) == []
    record = json.loads(store.get(keys.suppressed(CALM))[0])
    assert (record["reason"], record["trigger"]["rule"]) == ("NoLoan", "Calm")


def test_a_loan_counts_against_the_budget(operate) -> None:
    spent = Budget(max_branches=0)
    spec = SPEC.model_copy(
        update={"branching": SPEC.branching.model_copy(update={"budget": spent})}
    )
    operator, store, _ = operate(CALM, CUT, spec=spec)
    assert not operator.work()
    assert json.loads(store.get(keys.suppressed(CALM))[0])["reason"] == "Budget"
