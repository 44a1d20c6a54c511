"""The detector as a log meets it: steps in, events out, and back again if a run goes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.detector import Detector

#: Steps that a run may go back by and be judged as if it had not gone on meanwhile.
REACH: Final = 8192
_MARK_EVERY: Final = 64


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A departure as it is shown. step: where it was first seen. onset: its first step, at most that.
    tier: what it came to, in a word. tier_step: where it came to it, at least ``step``. cause: one sentence. abandoned: whether the run went back to an
    earlier step after it.
    """

    step: int
    onset: int
    tier: str
    component: str
    cause: str
    tier_step: int
    abandoned: bool = False


class LogDetector:
    """One detector over one run. events: all of them, in the order of the log."""

    def __init__(self, config: DetectorConfig, run: str) -> None:
        self._config, self._run = config, run
        self._detector = Detector(config, run)
        self._marks: deque[tuple[int, dict[str, Any]]] = deque(maxlen=REACH // _MARK_EVERY)
        self._folded = 0
        self.events: list[LogEvent] = []
        self._open: dict[str, int] = {}  # by component, the place of its last departure

    def fold(self, stats: StepStats) -> tuple[float, LogEvent | None]:
        """Fold one step: (z, what begins or rises at it)."""
        z, event = self._fold(stats)
        if event is not None:
            event = self._noted(event)
        return z, event

    def go_back(self, step: int, before: Iterable[StepStats]) -> None:
        """Forget what came at ``step`` and later. before: the steps that came before it and are still
        known, in order.
        """
        self._abandon(step)
        while self._marks and self._marks[-1][0] >= step:
            self._marks.pop()
        self._detector = Detector(self._config, self._run)
        after, self._folded = -1, 0
        if self._marks:
            after, state = self._marks.pop()
            self._detector.restore(state)
        for stats in before:
            if stats.step >= after:
                self._fold(stats)

    def collapse(self, step: int, before: Iterable[StepStats]) -> None:
        """Begin a new epoch at ``step`` of a lineage whose steps up to there are ``before``."""
        self._abandon(step)
        self._marks.clear()
        self._detector, self._folded = Detector(self._config, self._run), 0
        for stats in before:
            self._fold(stats)

    def _abandon(self, step: int) -> None:
        self._open.clear()
        self.events = [
            one if one.step < step else replace(one, abandoned=True) for one in self.events
        ]

    def _fold(self, stats: StepStats) -> tuple[float, LogEvent | None]:
        if self._folded % _MARK_EVERY == 0:
            self._marks.append((stats.step, self._detector.state()))
        self._folded += 1
        reading = self._detector.fold(stats)
        event = reading.event
        if event is None:
            return reading.index.z, None
        return reading.index.z, LogEvent(
            step=event.step,
            onset=event.onset_step,
            tier=event.tier.name.lower(),
            component=event.component,
            cause=event.cause,
            tier_step=event.step,
        )

    def _noted(self, event: LogEvent) -> LogEvent:
        """A departure that rises, or asks again, is the one that it was, and keeps the step at which it
        was first seen.
        """
        known = self._open.get(event.component)
        if known is not None and self.events[known].onset == event.onset:
            before = self.events[known]
            risen = event.step if event.tier != before.tier else before.tier_step
            event = replace(event, step=before.step, tier_step=risen)
            self.events[known] = event
        else:
            self._open[event.component] = len(self.events)
            self.events.append(event)
        return event
