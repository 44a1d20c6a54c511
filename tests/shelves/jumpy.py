"""A toy signal: a half at every third step, and a jump at step 60."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forkcast.level import Level
from forkcast.records import StepStats
from forkcast_monitor.signals.base import MOST, SignalBase, SignalRules


class Jumpy(SignalBase):
    """The most there is at step 60."""

    weight = 0.25

    def __init__(self, rules: SignalRules) -> None:
        self._rules = rules
        self._seen = 0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """See the class."""
        self._seen += 1
        return MOST if stats.step == 60 else 0.5 * (stats.step % 3 == 1)

    def cause(self) -> str:
        """How many steps it has seen."""
        return f"it jumped at its step {self._seen}"

    def state(self) -> Mapping[str, object]:
        """How many steps it has seen."""
        return {"seen": self._seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._seen = int(state["seen"])
