"""What a preset is: signals, and when what they say is an event or a branch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from forkcast.departures import TierRules
from forkcast.level import Level
from forkcast.records import StepStats
from forkcast_monitor.signals import SignalKind
from forkcast_monitor.signals.base import EVENT, MOST, SignalBase, SignalRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """signals: those it runs, by name. tiers: its defaults. weighted: whether a manifest may give its
    signals weights. quiet: whether `cooldownSteps` hides what follows a trigger, as the literal rule
    does, instead of asking again. source: whose rule it is: project, file and version.
    """

    signals: Mapping[str, SignalKind]
    tiers: TierRules
    weighted: bool = False
    quiet: bool = False
    source: str


def rule(name: str, kind: SignalKind, source: str) -> Preset:
    """A preset of one rule that fires or does not: u is over an event's 3.2 exactly if it fires."""
    return Preset(signals={name: kind}, tiers=TierRules(single_z=EVENT, z=MOST), source=source)


class Rule(SignalBase):
    """A rule of another project: u is 0 while it does not fire, above 3.2 when it does.

    Every row that fires counts by itself: there is no patience, and the rule is armed again at the
    first row that does not fire. Only rows with a finite loss are judged, and no value that is not
    finite enters a window; the detector has a rule of its own for those.
    """

    weight: ClassVar[float] = 1.0

    def __init__(self, rules: SignalRules) -> None:
        del rules  # each rule keeps its own project's numbers
        self._cause = ""

    def update(self, stats: StepStats, level: Level) -> float | None:
        """The statistic over its limit, in the unit of an event; 0 if the rule does not fire."""
        if not level.finite:
            self.healed = True  # a row that is not judged does not fire
            return None
        excess = self.excess(stats)
        self.healed = excess is None
        if excess is None:
            return 0.0
        # at the limit itself it has to be over 3.2, whatever rounding does to the product
        return min(EVENT * max(excess, 1.0001), MOST)

    def excess(self, stats: StepStats) -> float | None:
        """How many times its limit the statistic is, >= 1; None if the rule does not fire."""
        raise NotImplementedError

    def cause(self) -> str:
        """What the row showed that fired last."""
        return self._cause

    def state(self) -> Mapping[str, object]:
        """What the rule keeps, and whether it fired at the last row."""
        return {**self.kept(), "fired": not self.healed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.healed = not state["fired"]
        self.keep(state)

    def kept(self) -> Mapping[str, object]:
        """What the rule needs of the rows before."""
        raise NotImplementedError

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Become what `kept` was taken from."""
        raise NotImplementedError


class Recent:
    """The last ``size`` values: their mean, and their standard deviation (of a population)."""

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        self.values: deque[float] = deque(values, maxlen=size)

    @property
    def full(self) -> bool:
        """Whether ``size`` values are there."""
        return len(self.values) == self.values.maxlen

    def push(self, value: float) -> None:
        """Add a finite value; the oldest leaves a full window."""
        self.values.append(value)

    def mean(self) -> float:
        """Of what is there; there has to be something."""
        return math.fsum(self.values) / len(self.values)

    def mean_and_sd(self) -> tuple[float, float]:
        """Of what is there; there has to be something."""
        mean = self.mean()
        return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in self.values) / len(self.values))

    def state(self) -> list[float]:
        """The values, oldest first."""
        return list(self.values)

    def restore(self, state: Iterable[Any]) -> None:
        """Become what `state` was taken from."""
        self.values = deque((float(value) for value in state), maxlen=self.values.maxlen)
