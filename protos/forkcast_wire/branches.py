"""A branch's documents in the store, and their one reader.

The operator writes them; operators and commands read them here, whichever of them runs the rollouts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from forkcast.admission import Refusal
from forkcast.branch_rules import BranchRules
from forkcast.decision import Decision, Draft, Outcome, Reason
from forkcast.phases import PHASES, Finished, Forking, Phase, Releasing
from forkcast.ports import Store
from forkcast.records import StateRef, Trial, TrialStatus, Trigger
from forkcast.seen import RolloutSeen
from forkcast_wire import keys
from forkcast_wire.documents import DocumentError, RolloutJob, RolloutUntil, dump, load
from forkcast_wire.store import AlreadyExists, KeyMissing, put_document, read_document

T = TypeVar("T")
_MOST_TEXT: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRecord:
    """branch.json: a branch as it was opened. opened_at: Unix seconds."""

    name: str
    trigger: Trigger
    rules: BranchRules
    opened_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """admitted.json: a queue let the branch's first rollout start. at: Unix seconds."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """bases.json: the base states of a branch, newest first."""

    bases: tuple[StateRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRecord:
    """outcome.json: how a branch ended; written once, when nothing of it is left.

    decision_digest: of decision.json; None without a decision, and in records from before it was kept.
    """

    branch: str
    outcome: Outcome
    reason: Reason
    decision_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """suppressed/<trigger>.json: a trigger that opened no branch, and why."""

    trigger: Trigger
    reason: Refusal

    @property
    def words(self) -> str:
        """For people."""
        rule, step = self.trigger.rule.value, self.trigger.step
        return f"{rule} at step {step:,} opened no branch: {self.reason.words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBranch:
    """What the store holds of one branch.

    phase: as last saved; Forking if none was saved or it is damaged, since the branch is then found
        again from its other records.
    bases: newest first; None until they are pinned. rollouts: by candidate.
    released: outcome.json is there: nothing of the branch is left. end: what it holds; None if it is
        absent or damaged, since it only repeats the last phase.
    """

    record: BranchRecord
    phase: Phase
    bases: tuple[StateRef, ...] | None = None
    draft: Draft | None = None
    decision: Decision | None = None
    rollouts: Mapping[str, RolloutSeen]
    released: bool = False
    end: OutcomeRecord | None = None

    @property
    def id(self) -> str:
        """Of its trigger: the name of its folder."""
        return self.record.trigger.id

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return isinstance(self.phase, Finished)

    @property
    def outcome(self) -> Outcome | None:
        """How it ends, as soon as that is known."""
        if isinstance(self.phase, Releasing | Finished):
            return self.phase.outcome
        return self.decision.outcome if self.decision else None


def opened(store: Store) -> list[str]:
    """The trigger ids of all branches that were ever opened, in key order."""
    found = (keys.branch_of(info.key) for info in store.list(keys.BRANCHES_PREFIX))
    return [file[0] for file in found if file is not None and file[1] == "branch"]


def record_of(store: Store, trigger_id: str) -> BranchRecord | None:
    """branch.json, None if there is none. Raises DocumentError."""
    return read_document(store, BranchRecord, keys.branch_file(trigger_id, "branch"))


def read(store: Store, record: BranchRecord, phase: Phase | None = None) -> StoredBranch:
    """A branch's documents. phase: if the caller knows it already; else the saved phase is read.

    Raises DocumentError if bases, draft, decision, a desired rung or a trial is damaged.
    """
    trigger_id = record.trigger.id
    found = (keys.branch_of(info.key) for info in store.list(f"{keys.branch(trigger_id)}/"))
    there = {file[1] for file in found if file is not None}

    def document(kind: type[T], name: str) -> T | None:
        if name not in there:  # most are absent for most of a branch's life: no request for them
            return None
        return read_document(store, kind, keys.branch_file(trigger_id, name))

    bases = document(Bases, "bases")
    return StoredBranch(
        record=record,
        phase=_phase(store, record) if phase is None else phase,
        bases=bases.bases if bases else None,
        draft=document(Draft, "draft"),
        decision=document(Decision, "decision"),
        rollouts=rollouts(store, trigger_id),
        released="outcome" in there,
        end=_end(store, trigger_id) if "outcome" in there else None,
    )


def rollouts(store: Store, trigger_id: str) -> dict[str, RolloutSeen]:
    """The rollouts of a branch by candidate: the desired rung and the published trials of each.
    Raises DocumentError.
    """
    until: dict[str, int | None] = {}
    trials: dict[str, dict[int, Trial]] = {}
    for info in store.list(keys.rollouts(trigger_id)):
        file = keys.rollout_of(info.key)
        if file is None:
            continue
        _, candidate, name = file
        measured = trials.setdefault(candidate, {})
        if name == "until":
            desired = read_document(store, RolloutUntil, info.key)
            until[candidate] = desired.until if desired else None
        elif name != "job" and (trial := read_document(store, Trial, info.key)) is not None:
            measured[trial.rung] = trial
    return {
        name: RolloutSeen(until=until.get(name), trials=measured)
        for name, measured in trials.items()
    }


def give_up(store: Store, trigger_id: str, candidate: str, rung: int, why: str) -> None:
    """Record that a rollout failed at a rung. Nothing is recorded if it was measured after all, or
    was never to run. Raises DocumentError.
    """
    job = read_document(store, RolloutJob, keys.rollout_job(trigger_id, candidate))
    if job is None:
        return
    trial = Trial(
        candidate=candidate,
        rung=rung,
        step=job.trigger_step + rung,
        status=TrialStatus.FAILED,
        validation_loss=None,
        mean_weights_loss=None,
        losses_from=job.base.step,
        losses=(),
        spike_steps=(),
        steps_run=0,
        seconds=0.0,
        failure=why[:_MOST_TEXT],
    )
    with contextlib.suppress(AlreadyExists):
        put_document(store, keys.rollout_trial(trigger_id, candidate, rung), trial)


def suppressions(store: Store) -> tuple[int, Suppression | None]:
    """How many triggers opened no branch, and the newest of them; None if there is none, or its record
    is damaged.
    """
    found = {info.key: keys.suppressed_at(info.key) for info in store.list(keys.SUPPRESSED_PREFIX)}
    newest = max(found, key=lambda key: found[key], default=None)
    if newest is None:
        return 0, None
    try:
        return len(found), read_document(store, Suppression, newest)
    except DocumentError:
        return len(found), None


def decisions(store: Store) -> Iterator[Decision]:
    """The decisions of all branches, in key order, but for damaged ones."""
    for info in store.list(keys.BRANCHES_PREFIX):
        file = keys.branch_of(info.key)
        if file is not None and file[1] == "decision":
            with contextlib.suppress(DocumentError):
                decision = read_document(store, Decision, info.key)
                if decision is not None:
                    yield decision


def save_phase(store: Store, trigger_id: str, phase: Phase) -> None:
    """Write phase.json."""
    record = {"kind": type(phase).__name__, "phase": phase}
    store.put(keys.branch_file(trigger_id, "phase"), dump(record))


def saved_phase(store: Store, trigger_id: str) -> Phase | None:
    """The phase in phase.json, None if the branch was never saved. Raises DocumentError."""
    try:
        data = store.get(keys.branch_file(trigger_id, "phase"))[0]
    except KeyMissing:
        return None
    try:
        document = json.loads(data)
        phase: Phase = load(PHASES[document["kind"]], json.dumps(document["phase"]).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(f"phase: {error}") from error
    return phase


def _phase(store: Store, record: BranchRecord) -> Phase:
    try:
        saved = saved_phase(store, record.trigger.id)
    except DocumentError:
        saved = None
    return saved or first_phase(record)


def first_phase(record: BranchRecord) -> Phase:
    """In which a branch begins, and begins again if its saved phase is lost."""
    return Forking(branch=record.name, trigger=record.trigger)


def _end(store: Store, trigger_id: str) -> OutcomeRecord | None:
    try:
        return read_document(store, OutcomeRecord, keys.branch_file(trigger_id, "outcome"))
    except DocumentError:
        return None
