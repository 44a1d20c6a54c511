"""The phases of a branch, what each of them knows, and which may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from forkcast.decision import Decision, Draft, Outcome, Reason
from forkcast.records import StateRef, Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Forking:
    """Base states are being chosen and pinned."""

    branch: str
    trigger: Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Candidates are being drawn and ranked."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """``entrants`` run to ``rung``, including the control except under policy Ladder; any other
    rollout is stopped.
    """

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]
    draft: Draft
    entrants: tuple[str, ...]
    rung: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """Everything is measured; the decision is being recorded."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]
    draft: Draft
    cut_short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapsing:
    """The decision stands and is carried into the main run."""

    branch: str
    trigger: Trigger
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Releasing:
    """Nothing is left to decide; what the branch holds is given back."""

    branch: str
    trigger: Trigger
    outcome: Outcome
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end. A finished branch holds no resources."""

    branch: str
    trigger: Trigger
    outcome: Outcome
    reason: Reason


Phase: TypeAlias = Forking | Drafting | Verifying | Deciding | Collapsing | Releasing | Finished

#: Legal moves, phase to phase (staying is always legal).
MOVES: Final[Mapping[type, tuple[type, ...]]] = {
    Forking: (Drafting, Collapsing, Releasing),
    Drafting: (Verifying, Collapsing, Releasing),
    Verifying: (Verifying, Deciding, Collapsing, Releasing),
    Deciding: (Collapsing, Releasing),
    Collapsing: (Releasing,),
    Releasing: (Finished,),
    Finished: (),
}

PHASES: Final[Mapping[str, type]] = {kind.__name__: kind for kind in MOVES}
