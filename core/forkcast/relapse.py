"""What came after a collapse: did the run stay healthy, or trigger again?

Calm for fifty steps is weak evidence: a remedy that held through the confirm rung may still give way
a thousand steps later. The labels made here say which did, and are what a proxy would learn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forkcast.lineage import LineageEntry, in_force
from forkcast.records import Trigger, TriggerRule

#: Steps after a collapse over which a relapse is looked for.
WATCHED_STEPS = (500, 2_000)
#: Rules that say nothing about the run's health.
_NO_DEPARTURE = (TriggerRule.FORCED, TriggerRule.CALM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What followed the collapse that opened ``epoch``.

    watched: steps that the lineage went on from the adopted state and still rests on it.
    relapsed_after: steps from there to the first trigger that tells of a departure; None for none.
    """

    epoch: int
    watched: int
    relapsed_after: int | None

    def relapsed_within(self, steps: int) -> bool | None:
        """The label: True, False, or None if the watch was shorter and saw no relapse."""
        if self.relapsed_after is not None and self.relapsed_after <= steps:
            return True
        return False if self.watched >= steps else None


def aftermaths(
    lineage: Sequence[LineageEntry], triggers: Sequence[Trigger], last_steps: Mapping[int, int]
) -> tuple[Aftermath, ...]:
    """One for each collapse, in epoch order.

    triggers: all that fired, whether a branch was opened or not; the detector is silent for its
    cooldown after a collapse, so none comes earlier. last_steps: the newest step the main run took,
    by epoch; an epoch without one has taken none. A later collapse that went back behind the
    adopted state ends the watch.
    """
    ordered = sorted(lineage, key=lambda entry: entry.epoch)
    found = []
    for entry in ordered:
        start = entry.state.step
        resting = {
            later.epoch for later in ordered if entry in in_force(ordered, later.epoch)
        }  # itself, and the later ones up to one that went back behind it
        relapses = [
            one.step - start
            for one in triggers
            if one.epoch in resting and one.step >= start and one.rule not in _NO_DEPARTURE
        ]
        reached = max((last_steps.get(epoch, start) for epoch in resting), default=start)
        found.append(
            Aftermath(
                epoch=entry.epoch,
                watched=max(reached - start, 0),
                relapsed_after=min(relapses, default=None),
            )
        )
    return tuple(found)
