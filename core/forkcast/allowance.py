"""What a branch may cost, from how bad its departure is and what is left of the run's budget. Pure.

A branch costs the steps of its rollouts: so many candidates beside the control, rung by rung. Rungs,
depths and deadline stay what the manifest says, because the margins were measured at those rungs; what
is smaller is the field. The manifest's `topK` is the most, control + 1 candidate the least:

===================================================  ========================================
a severe departure, for the first time               the whole field
a loss or norm that is not finite, each time         the whole: nothing is learnt meanwhile
a trigger that the manifest forces                   the whole
any other departure, for the first time              the whole; a half if the budget is spent early
a rate of events, a validation loss, a calm          a half
any of these again, after n branches                 a half of that, a quarter ...; none below 1
===================================================  ========================================

The last fifth of the budget's branches is kept for severe departures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from forkcast.records import Trigger, TriggerRule

#: One branch in so many of what a budget allows is kept for severe departures; none of a few.
KEPT_OF: Final = 5
_SEVERE: Final = (TriggerRule.NON_FINITE, TriggerRule.INTERNAL)


class Grounds(StrEnum):
    """Why a branch may cost what it may."""

    FORCED = "Forced"
    SEVERE = "Severe"
    FIRST = "First"  # a departure that has had no branch yet
    AGAIN = "Again"  # it has had at least one
    SPENT_EARLY = "SpentEarly"  # a first one, while more of the budget is gone than of the run
    SLOW_MEASUREMENT = "SlowMeasurement"  # a validation loss, or a rate of events
    CALM = "Calm"


_IN_WORDS: Final = {
    Grounds.FORCED: "the manifest forces this trigger",
    Grounds.SEVERE: "the departure is severe",
    Grounds.FIRST: "it is the first branch of this departure",
    Grounds.AGAIN: "this departure has had a branch already",
    Grounds.SPENT_EARLY: "more of the budget is spent than of the run's steps",
    Grounds.SLOW_MEASUREMENT: "a slow measurement asks, which can wait",
    Grounds.CALM: "the run is calm, and only a cut of the rate is to be paid back",
}
_HALF: Final = {
    TriggerRule.VALIDATION_REGRESSION: Grounds.SLOW_MEASUREMENT,
    TriggerRule.INSTABILITY_RATE: Grounds.SLOW_MEASUREMENT,
    TriggerRule.CALM: Grounds.CALM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """candidates: how many a branch may verify beside the control, 1 <= candidates <= most.
    most: what the manifest allowed when the branch was opened.
    """

    candidates: int
    most: int
    grounds: Grounds

    def share(self, count: int) -> int:
        """The same share of another number of candidates, at least 1 and at most ``candidates``."""
        return max(1, min(count * self.candidates // self.most, self.candidates))

    @property
    def words(self) -> str:
        """For people: how many, and why."""
        many = f"{self.candidates} of {self.most}"
        if self.candidates == self.most:
            many = f"all {self.most}" if self.most > 1 else "one"
        candidates = "candidate" if self.most == 1 else "candidates"
        return f"{many} {candidates}: {_IN_WORDS[self.grounds]}"


def severe(trigger: Trigger) -> bool:
    """Whether waiting costs the run: what it trains meanwhile is lost, or close to it."""
    return trigger.severe or trigger.rule in _SEVERE


def may_use_all(trigger: Trigger) -> bool:
    """Whether the kept part of a budget is open to it."""
    return severe(trigger) or trigger.rule is TriggerRule.FORCED


def allow(
    trigger: Trigger, most: int, before: Sequence[Trigger], *, spent_early: bool
) -> Allowance | None:
    """What the branch of a trigger may cost; None if its departure has had so many that not one
    candidate is left.

    most: candidates that the manifest allows a branch, >= 1. before: the triggers of the run's
    branches so far. spent_early: see `spent_early`.
    """
    if trigger.rule is TriggerRule.FORCED:
        return Allowance(candidates=most, most=most, grounds=Grounds.FORCED)
    if trigger.rule is TriggerRule.NON_FINITE:
        return Allowance(candidates=most, most=most, grounds=Grounds.SEVERE)
    field, grounds = most, Grounds.SEVERE if severe(trigger) else Grounds.FIRST
    if trigger.rule in _HALF:
        field, grounds = max(1, most // 2), _HALF[trigger.rule]
    if times := _times(trigger, before):
        field, grounds = field >> times, Grounds.AGAIN
    elif grounds is Grounds.FIRST and spent_early:
        field, grounds = max(1, most // 2), Grounds.SPENT_EARLY
    return Allowance(candidates=field, most=most, grounds=grounds) if field else None


def _times(trigger: Trigger, before: Iterable[Trigger]) -> int:
    """How many branches the departure has had. One that has become severe is looked at anew."""
    return sum(
        earlier.departure == trigger.departure and (severe(earlier) or not severe(trigger))
        for earlier in before
    )


def spent_early(opened: int, allowed: int, step: int, total_steps: int) -> bool:
    """Whether at least half of a budget is spent, and more of it than of the run's steps.

    opened: branches so far. allowed: branches over the run's life.
    """
    return 2 * opened >= allowed > 0 and opened * total_steps > allowed * step
