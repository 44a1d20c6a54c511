"""What the operator tells the trainer of a run, through the monitor.

A directive may be lost with its monitor, so it is posted until its effect shows; its id makes the same
one out of all of them. None is needed for the truth: that is the lineage log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

#: No hold is longer: the most that a branch's budget.deadlineSeconds allows.
MOST_HOLD_SECONDS: Final = 604_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Wait at the next step boundary until `Resume` or `Collapse`, at most ``deadline_seconds``, more
    than 0 and at most `MOST_HOLD_SECONDS`.
    """

    branch: str
    deadline_seconds: float

    @property
    def id(self) -> str:
        """``hold/<branch>``."""
        return f"hold/{self.branch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on; the branch has let go of the run."""

    branch: str

    @property
    def id(self) -> str:
        """``release/<branch>``."""
        return f"release/{self.branch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """Adopt the state that opens the epoch, at the next step boundary.

    epoch: >= 1. decision_digest: of the decision in the lineage, so that the trainer can check that it
    reads the same.
    """

    branch: str
    epoch: int
    decision_digest: str

    @property
    def id(self) -> str:
        """``collapse/<epoch>``."""
        return f"collapse/{self.epoch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointNow:
    """Save a checkpoint at the next step boundary. id: another one for each time it is asked for."""

    id: str

    @classmethod
    def asked_by(cls, request: str) -> Self:
        """request: a text of the user's; the same text is the same directive."""
        return cls(id=f"checkpoint/{hashlib.sha256(request.encode()).hexdigest()[:16]}")


Directive: TypeAlias = Hold | Resume | Collapse | CheckpointNow
