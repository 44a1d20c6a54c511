"""The detector as a log meets it: steps in, happenings out, and back again if a run goes back."""

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
class Happening:
    """A departure as it is shown. step: where it was first seen. onset: its first step, at most that.
    tier: what it came to, in a word. cause: one sentence. abandoned: whether the run went back to an
    earlier step after it.
    """

    step: int
    onset: int
    tier: str
    component: str
    cause: str
    abandoned: bool = False


class Judge:
    """One detector over one run. happenings: all of them, in the order of the log."""

    def __init__(self, config: DetectorConfig, run: str) -> None:
        self._config, self._run = config, run
        self._detector = Detector(config, run)
        self._marks: deque[tuple[int, dict[str, Any]]] = deque(maxlen=REACH // _MARK_EVERY)
        self._folded = 0
        self.happenings: list[Happening] = []

    def fold(self, stats: StepStats) -> tuple[float, Happening | None]:
        """Fold one step: (z, what begins or rises at it)."""
        z, happening = self._fold(stats)
        if happening is not None:
            happening = self._noted(happening)
        return z, happening

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
        self.happenings = [
            one if one.step < step else replace(one, abandoned=True) for one in self.happenings
        ]

    def _fold(self, stats: StepStats) -> tuple[float, Happening | None]:
        if self._folded % _MARK_EVERY == 0:
            self._marks.append((stats.step, self._detector.state()))
        self._folded += 1
        reading = self._detector.fold(stats)
        event = reading.event
        if event is None:
            return reading.index.z, None
        return reading.index.z, Happening(
            step=event.step,
            onset=event.onset_step,
            tier=event.tier.name.lower(),
            component=event.component,
            cause=event.cause,
        )

    def _noted(self, happening: Happening) -> Happening:
        """A departure that rises is the one that it was, and keeps the step at which it was first seen."""
        last = self.happenings[-1] if self.happenings else None
        if last is not None and (last.onset, last.component, last.abandoned) == (
            happening.onset,
            happening.component,
            False,
        ):
            happening = replace(happening, step=last.step)
            self.happenings[-1] = happening
        else:
            self.happenings.append(happening)
        return happening
