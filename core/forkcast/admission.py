"""Which triggers open a branch, and why the others do not. Pure.

Every trigger gets one verdict, in the order in which the triggers came, and its verdict is durable
before the next one is looked at. So one trigger has at most one branch, a run has at most one that
is active, and no trigger is lost: what opens no branch is recorded with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from forkcast.allowance import KEPT_OF, Allowance, allow, may_use_all, spent_early
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
    RESERVED = "BudgetReserved"  # the rest of the budget is kept for severe departures
    TRIED = "DepartureTried"  # its departure has had branches, smaller each time; none is left
    WATCHED = "Watched"  # somebody else's loop: nothing of this project acts on it
    END_OF_RUN = "EndOfRun"  # not even the first rung fits into the steps left

    @property
    def words(self) -> str:
        """For people: what follows "opens no branch: "."""
        return _IN_WORDS[self]


_IN_WORDS: Final = {
    Refusal.MODE: "the mode opens none (branching.mode)",
    Refusal.WATCHED: "the run is only watched",
    Refusal.RUN_FINISHED: "the run has ended",
    Refusal.STALE_EPOCH: "another branch has abandoned the steps it speaks of",
    Refusal.NO_LOAN: "no cut of the learning rate is to be paid back",
    Refusal.BRANCH_ACTIVE: "another branch is open",
    Refusal.BUDGET: "branching.budget is spent",
    Refusal.RESERVED: "the rest of branching.budget is kept for severe departures",
    Refusal.TRIED: "its departure has had branches already, smaller each time, and none is left",
    Refusal.END_OF_RUN: "too few steps are left for the first rung",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many branches a run may open, and what the largest of them may cost.

    branches: False in the modes that open none. max_branches: over the whole run, >= 0.
    max_per_hundred_thousand_steps: >= 0; a run gets at least one, and parts of 100,000 steps count
    as whole ones. candidates: most of a branch, >= 1; None under a policy whose branch is one rollout.
    total_steps: of the run, >= 1.
    """

    branches: bool
    max_branches: int
    max_per_hundred_thousand_steps: int
    candidates: int | None
    total_steps: int

    def allowed(self, step: int) -> int:
        """How many branches may have been opened by ``step``, the next one included."""
        steps = max(step, _PER_STEPS)
        by_rate = max(1, -(-self.max_per_hundred_thousand_steps * steps // _PER_STEPS))
        return min(self.max_branches, by_rate)

    def open_to(self, trigger: Trigger) -> int:
        """How many branches may have been opened by this trigger's step, its own included."""
        allowed = self.allowed(trigger.step)
        return allowed if may_use_all(trigger) else allowed - allowed // KEPT_OF

    def spent_early(self, opened: int, step: int) -> bool:
        """Whether so many branches by ``step`` are early; see `forkcast.allowance.spent_early`."""
        return spent_early(opened, self.allowed(self.total_steps), step, self.total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """What one look at a run shows. Triggers are named by their ids.

    epoch: the lineage's highest. opened: triggers that have a branch. active: those of them whose
    branch has not ended. suppressed: triggers recorded as opening none. tried: the triggers of the
    branches opened so far, but for those whose record is damaged.
    """

    finished: bool
    epoch: int
    opened: frozenset[str]
    active: frozenset[str]
    suppressed: frozenset[str]
    tried: tuple[Trigger, ...] = ()

    def knows(self, trigger: Trigger) -> bool:
        """Whether the trigger has its verdict already."""
        return trigger.id in self.opened or trigger.id in self.suppressed


@dataclass(frozen=True, slots=True)
class Open:
    """The trigger opens a branch that may cost so much; None: one rollout."""

    allowance: Allowance | None


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
    if len(seen.opened) >= budget.open_to(trigger):
        return Suppress(Refusal.RESERVED)
    allowance = None
    if budget.candidates is not None:
        early = budget.spent_early(len(seen.opened), trigger.step)
        allowance = allow(trigger, budget.candidates, seen.tried, spent_early=early)
        if allowance is None:
            return Suppress(Refusal.TRIED)
    if not fits:
        return Suppress(Refusal.END_OF_RUN)
    return Open(allowance)
