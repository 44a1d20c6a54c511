"""Which triggers open a branch, and why the others do not. Pure.

Every trigger gets one verdict, in the order in which the triggers came, and its verdict is durable
before the next one is looked at. So one trigger has at most one branch, a run has at most one that
is active, and no trigger is lost: what opens no branch is recorded with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from forkcast.records import Trigger

_PER_STEPS: Final = 100_000


class Refusal(StrEnum):
    """Why a trigger opens no branch; the first reason that holds, in this order."""

    MODE = "Mode"  # this run is observed, or not watched at all
    RUN_FINISHED = "RunFinished"
    STALE_EPOCH = "StaleEpoch"  # a collapse has abandoned what it speaks of
    NO_LOAN = "NoLoan"  # a calm offers to pay a cut of the rate back, and there is none
    BRANCH_ACTIVE = "BranchActive"
    BUDGET = "Budget"
    END_OF_RUN = "EndOfRun"  # not even the first rung fits into the steps left


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many branches a run may open.

    branches: False in the modes that open none. max_branches: over the whole run, >= 0.
    max_per_hundred_thousand_steps: >= 0; a run gets at least one, and parts of 100,000 steps count
    as whole ones.
    """

    branches: bool
    max_branches: int
    max_per_hundred_thousand_steps: int

    def allowed(self, step: int) -> int:
        """How many branches may have been opened by ``step``, the next one included."""
        steps = max(step, _PER_STEPS)
        by_rate = max(1, -(-self.max_per_hundred_thousand_steps * steps // _PER_STEPS))
        return min(self.max_branches, by_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """What one look at a run shows. Triggers are named by their ids.

    epoch: the lineage's highest. opened: triggers that have a branch. active: those of them whose
    branch has not ended. suppressed: triggers recorded as opening none.
    """

    finished: bool
    epoch: int
    opened: frozenset[str]
    active: frozenset[str]
    suppressed: frozenset[str]

    def knows(self, trigger: Trigger) -> bool:
        """Whether the trigger has its verdict already."""
        return trigger.id in self.opened or trigger.id in self.suppressed


@dataclass(frozen=True, slots=True)
class Open:
    """The trigger opens a branch."""


@dataclass(frozen=True, slots=True)
class Suppress:
    """The trigger opens none, for this reason."""

    reason: Refusal


def admit(
    trigger: Trigger, seen: RunSeen, budget: Budget, *, fits: bool, owed: bool = True
) -> Open | Suppress | None:
    """The verdict on a trigger; None if it has one, which stands.

    fits: whether the first rung of a branch fits into the steps that are left after the trigger.
    owed: False if the trigger offers to pay back a cut of the rate and none is outstanding.
    """
    if seen.knows(trigger):
        return None
    if not budget.branches:
        return Suppress(Refusal.MODE)
    if seen.finished:
        return Suppress(Refusal.RUN_FINISHED)
    if seen.epoch > trigger.epoch:
        return Suppress(Refusal.STALE_EPOCH)
    if not owed:
        return Suppress(Refusal.NO_LOAN)
    if seen.active:
        return Suppress(Refusal.BRANCH_ACTIVE)
    if len(seen.opened) >= budget.allowed(trigger.step):
        return Suppress(Refusal.BUDGET)
    if not fits:
        return Suppress(Refusal.END_OF_RUN)
    return Open()
