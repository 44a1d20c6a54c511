"""What branches of one departure may cost, through a real local operator that forgets between them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from forkcast.decision import CONTROL, Decision, Outcome
from forkcast.records import Trigger, TriggerRule
from forkcast_cli import words
from forkcast_operator.__main__ import LocalOperator
from forkcast_wire import keys
from forkcast_wire.branches import BranchRecord, Suppression
from forkcast_wire.documents import RunInfo
from forkcast_wire.run_records import RecordsReader
from forkcast_wire.store import read_document

sys.path.insert(0, str(Path(__file__).parent))
from test_loan_branch import CALM, CUT
from test_local_world import SPEC, publish_trials

WIDE = SPEC.model_copy(
    update={"branching": SPEC.branching.model_copy(update={"top_k": 6, "candidates": 64})}
)
FIRST = replace(CALM, rule=TriggerRule.SINGLE, onset_step=99)


def to_the_end(operator: LocalOperator, store, **hands) -> None:
    for _ in range(60):
        if not operator.work():
            return
        publish_trials(store, **hands)
    raise AssertionError("the branch has not ended")


def another(store, folder, monitor, trigger: Trigger, spec=WIDE) -> LocalOperator:
    """Another operator process, which the same monitor tells of this trigger."""
    monitor.trigger = trigger
    monitor.told.clear()
    info = RunInfo(uid="u", name="run", manifest_digest="d")
    operator = LocalOperator(spec, info, store, folder, f"unix:{folder}/m.sock", "")
    operator.watch(monitor.told)
    return operator


def test_a_departure_that_no_branch_heals_gets_smaller_branches_and_then_none(
    operate, tmp_path
) -> None:
    operator, store, monitor = operate(FIRST, CUT, spec=WIDE)
    to_the_end(operator, store, better=False)
    fired = [replace(FIRST, step=FIRST.step + 200 * n) for n in range(4)]
    for again in fired[1:]:
        to_the_end(another(store, tmp_path, monitor, again), store, better=False)
    sizes = []
    for trigger in fired[:3]:
        decision = read_document(store, Decision, keys.branch_file(trigger.id, "decision"))
        assert decision is not None
        assert decision.outcome is Outcome.NO_ACTION
        assert {one.candidate for one in decision.trials} == {CONTROL, *decision.draft.finalists}
        assert decision.rules["candidates"] == len(decision.draft.finalists)
        assert (decision.rules["topK"], len(decision.draft.candidates)) == (6, 64)
        sizes.append((decision.rules["candidates"], decision.rules["grounds"]))
    assert sizes == [(6, "First"), (3, "Again"), (1, "Again")]
    refused = read_document(store, Suppression, keys.suppressed(fired[3]))
    assert refused is not None
    assert refused.reason.value == "DepartureTried"

    records = RecordsReader(store).read()
    said = [words.sentences(branch)[1] for branch in records.branches]
    assert said == [
        "It may try all 6 candidates: it is the first branch of this departure.",
        "It may try 3 of 6 candidates: this departure has had a branch already.",
        "It may try 1 of 6 candidates: this departure has had a branch already.",
    ]
    assert words.refused_sentence(records.suppressed).startswith(
        f"1 trigger opened no branch, the last at step {fired[3].step}: 1 because its departure"
    )


def test_what_a_branch_may_cost_is_settled_when_it_opens(operate, tmp_path) -> None:
    """An operator that comes later, with another manifest, finds it stored."""
    operator, store, monitor = operate(FIRST, CUT, spec=WIDE)
    operator.work()
    narrow = SPEC.model_copy(update={"branching": WIDE.branching.model_copy(update={"top_k": 2})})
    later = another(store, tmp_path, monitor, FIRST, narrow)
    to_the_end(later, store, better=False)
    record = read_document(store, BranchRecord, keys.branch_file(FIRST.id, "branch"))
    decision = read_document(store, Decision, keys.branch_file(FIRST.id, "decision"))
    assert record is not None
    assert decision is not None
    assert record.rules.allowance is not None
    assert record.rules.allowance.candidates == len(decision.draft.finalists) == 6


def test_a_calm_branch_is_half_as_wide(operate) -> None:
    operator, store, _ = operate(CALM, CUT, spec=WIDE)
    to_the_end(operator, store, better=False)
    record = read_document(store, BranchRecord, keys.branch_file(CALM.id, "branch"))
    assert record is not None
    assert record.rules.allowance is not None
    assert record.rules.allowance.words == (
        "3 of 6 candidates: the run is calm, and only a cut of the rate is to be paid back"
    )
