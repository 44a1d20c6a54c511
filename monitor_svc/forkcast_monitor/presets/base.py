"""What a preset is: signals, and when what they say is an event or a branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from forkcast.departures import TierRules
from forkcast.level import Level
from forkcast.records import StepStats
from forkcast_monitor.signals import SignalKind
from forkcast_monitor.signals.base import EVENT, MOST, SignalBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """signals: those it runs, by name. tiers: its defaults. weighted: whether a manifest may give its
    signals weights. quiet: whether `cooldownSteps` hides what follows a trigger, as the rules of other
    projects do, instead of asking again. source: whose rule it is, and where.
    """

    signals: Mapping[str, SignalKind]
    tiers: TierRules = field(default_factory=TierRules)
    weighted: bool = False
    quiet: bool = False
    source: str


def rule(name: str, kind: SignalKind, source: str) -> Preset:
    """A preset of one rule that fires or does not: u is over an event's 3.2 exactly if it fires."""
    return Preset(signals={name: kind}, tiers=TierRules(single_z=EVENT, z=MOST), source=source)


class Rule(SignalBase):
    """A rule of one statistic against a limit: u = 3.2 at the limit, logarithmic beyond."""

    weight: ClassVar[float] = 1.0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """The statistic over its limit, in the unit of an event."""
        del level
        ratio = self.ratio(stats)
        self.healed = not ratio > 1
        # just over the limit has to be over 3.2, whatever rounding does to their product
        return 0.0 if not ratio > 1 else min(EVENT * max(ratio, 1.0001), MOST)

    def ratio(self, stats: StepStats) -> float:
        """The statistic over its limit; above 1 the rule fires."""
        raise NotImplementedError
