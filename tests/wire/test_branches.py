"""What the store holds of a branch, read by the one reader of it."""

from __future__ import annotations

import pytest

from forkcast.actions import Action
from forkcast.branch_rules import BranchRules
from forkcast.decision import Decision, Outcome, Reason
from forkcast.phases import Collapsing, Drafting, Finished, Forking
from forkcast.records import TrialStatus
from forkcast.seen import RolloutSeen
from forkcast_wire import branches, keys
from forkcast_wire.branches import Bases, BranchRecord, OutcomeRecord
from forkcast_wire.documents import DocumentError, RolloutJob, RolloutUntil, dump, load
from tests.make import trigger
from tests.wire.memory_store import MemoryStore
from tests.wire.test_schema_1 import FOLDER

DECISION = load(Decision, (FOLDER / "accepted.json").read_bytes())
TRIGGER = trigger()
RECORD = BranchRecord(name="r", trigger=TRIGGER, rules=BranchRules(), opened_at=1.0)
END = {"branch": "r", "outcome": Outcome.ACCEPTED, "reason": Reason.IMPROVED}


@pytest.fixture
def store() -> MemoryStore:
    """A branch that has ended, with a foreign key among its records."""
    made = MemoryStore()
    for name, document in {
        "branch": RECORD,
        "bases": Bases(bases=DECISION.bases),
        "draft": DECISION.draft,
        "decision": DECISION,
        "outcome": OutcomeRecord(**END, decision_digest=DECISION.digest),
    }.items():
        made.put(keys.branch_file(TRIGGER.id, name), dump(document))
    branches.save_phase(made, TRIGGER.id, Finished(trigger=TRIGGER, **END))
    for trial in DECISION.trials:
        made.put(keys.rollout_trial(TRIGGER.id, trial.candidate, trial.rung), dump(trial))
        made.put(keys.rollout_until(TRIGGER.id, trial.candidate), dump(RolloutUntil(until=10)))
    made.put(f"{keys.branch(TRIGGER.id)}/notes/today.txt", b"x")
    made.put(f"{keys.rollouts(TRIGGER.id)}c000/end-000010/manifest.json", b"x")
    return made


def test_everything_that_was_written_is_read_again(store: MemoryStore) -> None:
    (trigger_id,) = branches.opened(store)
    found = branches.read(store, branches.record_of(store, trigger_id))
    assert (found.record, found.id, found.finished) == (RECORD, TRIGGER.id, True)
    assert (found.bases, found.draft) == (DECISION.bases, DECISION.draft)
    assert (found.decision, found.outcome) == (DECISION, Outcome.ACCEPTED)
    assert found.released
    assert found.end.decision_digest == DECISION.digest
    trials = {(one.candidate, one.rung): one for one in DECISION.trials}
    read = {(name, rung): t for name, by in found.rollouts.items() for rung, t in by.trials.items()}
    assert read == trials
    assert {one.until for one in found.rollouts.values()} == {10}
    assert list(branches.decisions(store)) == [DECISION]


def test_of_a_branch_that_was_just_opened_nothing_is_guessed() -> None:
    store, asked = MemoryStore(), []
    store.put(keys.branch_file(TRIGGER.id, "branch"), dump(RECORD))
    store.put(keys.rollout_job(TRIGGER.id, "c000"), b"x")
    store.before = lambda access, key: asked.append((access, key))
    phase = Drafting(branch="r", trigger=TRIGGER, bases=())
    found = branches.read(store, RECORD, phase)
    assert (found.phase, found.bases, found.draft, found.decision) == (phase, None, None, None)
    assert (found.outcome, found.end, found.released) == (None, None, False)
    assert found.rollouts == {"c000": RolloutSeen(until=None, trials={})}
    assert [access for access, _ in asked] == ["list", "list"]  # what is absent is not asked for


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"kind": "Finished"}'])
def test_a_branch_is_found_again_without_its_phase_and_its_end(
    store: MemoryStore, damage: bytes
) -> None:
    for name in ("phase", "outcome"):
        store.put(keys.branch_file(TRIGGER.id, name), damage)
    found = branches.read(store, RECORD)
    assert (found.phase, found.end) == (Forking(branch="r", trigger=TRIGGER), None)
    assert found.released  # its name is proof that the branch has let go of everything
    assert found.outcome is Outcome.ACCEPTED  # by its decision
    with pytest.raises(DocumentError):
        branches.saved_phase(store, TRIGGER.id)


def test_a_rollout_is_given_up_once_and_never_over_what_was_measured(store: MemoryStore) -> None:
    measured = DECISION.trials[0]
    job = RolloutJob(
        run_uid="u",
        trigger_id=TRIGGER.id,
        candidate=measured.candidate,
        action=Action(),
        base=DECISION.bases[0],
        trigger_step=100,
        rungs=(10, 9999),
        publish_from=10,
    )
    store.put(keys.rollout_job(TRIGGER.id, measured.candidate), dump(job))
    for rung in (measured.rung, 9999):
        for why in ("it died" * 200, "again"):
            branches.give_up(store, TRIGGER.id, measured.candidate, rung, why)
    branches.give_up(store, TRIGGER.id, "c999", 10, "never to run")
    found = branches.rollouts(store, TRIGGER.id)
    assert found[measured.candidate].trials[measured.rung] == measured
    failed = found[measured.candidate].trials[9999]
    assert (failed.status, failed.step) == (TrialStatus.FAILED, 10_099)
    assert failed.failure == ("it died" * 200)[:500]
    assert "c999" not in found


@pytest.mark.parametrize("name", ["bases", "draft", "decision"])
def test_a_damaged_record_that_nothing_stands_in_for_is_named(
    store: MemoryStore, name: str
) -> None:
    key = keys.branch_file(TRIGGER.id, name)
    store.put(key, b"{")
    with pytest.raises(DocumentError, match=f"{key}: is damaged"):
        branches.read(store, RECORD)


def test_the_end_is_known_as_soon_as_it_is_decided(store: MemoryStore) -> None:
    phase = Collapsing(branch="r", trigger=TRIGGER, decision=DECISION)
    branches.save_phase(store, TRIGGER.id, phase)
    found = branches.read(store, RECORD)
    assert (found.phase, found.finished, found.outcome) == (phase, False, Outcome.ACCEPTED)
