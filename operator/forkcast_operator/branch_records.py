"""What the store holds of a branch beside the core's own records."""

from __future__ import annotations

import json
from dataclasses import dataclass

import structlog

from forkcast.admission import Refusal
from forkcast.branch import PHASES, BranchRules, Phase
from forkcast.decision import Outcome, Reason
from forkcast.ports import Store
from forkcast.records import StateRef, Trigger
from forkcast_wire import keys
from forkcast_wire.documents import load
from forkcast_wire.store import KeyMissing

_log = structlog.get_logger()


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

    decision_digest: of decision.json; None without one, and in records from before it was kept.
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


def load_phase(store: Store, trigger_id: str) -> Phase | None:
    """The phase a branch was last saved in, None if it was never saved or what was saved is damaged:
    then it is found again from the branch's other records.
    """
    try:
        data = store.get(keys.branch_file(trigger_id, "phase"))[0]
    except KeyMissing:
        return None
    try:
        document = json.loads(data)
        phase: Phase = load(PHASES[document["kind"]], json.dumps(document["phase"]).encode())
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("branch.phase_damaged", trigger=trigger_id, error=str(error))
        return None
    return phase
