"""What the store holds of a branch, read in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forkcast.branch import Finished, Phase, Releasing, RolloutSeen
from forkcast.decision import Decision, Draft, Outcome
from forkcast.records import StateRef
from forkcast_operator.branch_records import BranchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchFacts:
    """What the store holds of a branch. deadline: Unix seconds; None while it does not count yet,
    or is not looked at.
    """

    record: BranchRecord
    phase: Phase
    bases: tuple[StateRef, ...]
    draft: Draft | None
    decision: Decision | None
    rollouts: Mapping[str, RolloutSeen]
    deadline: float | None = None

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
