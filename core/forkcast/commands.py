"""What a branch asks the world to do. Each is idempotent: "already there" is success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from forkcast.actions import Action
from forkcast.decision import Decision, Outcome, Reason
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef, Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldMain:
    """Ask the trainer to wait at its next step boundary (executor Process only)."""

    branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinBases:
    """Choose base states from before ``before_step`` and pin them in the catalogue."""

    branch: str
    before_step: int
    depths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCandidates:
    """Draw the candidates, ask the proxy, rank, and record the draft (create-only)."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRollout:
    """Let the rollout exist and run until ``until`` steps after the trigger."""

    branch: str
    candidate: str
    action: Action
    base: StateRef
    trigger_step: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRollout:
    """Let the rollout not run any more; its records stay."""

    branch: str
    candidate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinState:
    """Pin the winner's end state, before the decision that names it is written."""

    branch: str
    state: StateRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDecision:
    """Write decision.json, create-only. Another decision already there is the one that holds."""

    branch: str
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLineage:
    """Create the lineage record of the next epoch. Losing the race is not an error."""

    branch: str
    entry: LineageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class PostCollapse:
    """Tell the trainer that a newer epoch exists and what it adopts."""

    branch: str
    entry: LineageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Stop what runs, unpin, let the main run go on, record the outcome."""

    branch: str
    outcome: Outcome
    reason: Reason


Command: TypeAlias = (
    HoldMain
    | PinBases
    | DraftCandidates
    | RunRollout
    | StopRollout
    | PinState
    | RecordDecision
    | AppendLineage
    | PostCollapse
    | Release
)
