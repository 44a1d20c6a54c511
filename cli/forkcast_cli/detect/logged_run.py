"""One run of a log as it is logged: its points in order, through the detector and beside it.

A run that is resumed takes steps again. The last value of a step is the one that counts: what had come
at that step and later is taken back from curves and detectors, and its events are marked as
abandoned. One row that lies behind, with the log going on after it, is a straggler and is left out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from forkcast.records import StepStats
from forkcast_cli.detect.log_detector import REACH, LogDetector, LogEvent
from forkcast_cli.detect.series import Place, Series
from forkcast_cli.detect.traits import Traits
from forkcast_cli.logs.points import Point

_MOST_ABANDONED: Final = 64
_MOST_TOLD: Final = 3
_MOST_RESUMES: Final = 100
_ROWS_A_RESUME: Final = 50


@dataclass(slots=True)
class Curves:
    """What a picture shows; abandoned: the losses of stretches that the run went back from."""

    loss: Series = field(default_factory=Series)
    grad_norm: Series = field(default_factory=Series)
    validation: Series = field(default_factory=Series)
    z: Series = field(default_factory=Series)
    abandoned: list[list[Place]] = field(default_factory=list)

    def cut(self, step: int) -> None:
        """Take back what came at a step and later."""
        dropped = self.loss.cut(step)
        if len(self.abandoned) < _MOST_ABANDONED:
            self.abandoned.append(dropped)
        for series in (self.grad_norm, self.validation, self.z):
            series.cut(step)


class LoggedRun:
    """Takes points, gives events. detectors: detectors by name; the first one's are given."""

    def __init__(self, name: str, detectors: Mapping[str, LogDetector]) -> None:
        self.name = name
        self.detectors = dict(detectors)
        self.detector = next(iter(self.detectors.values()))
        self.traits = Traits()
        self.curves = Curves()
        self.first: int | None = None
        self.last: int | None = None
        self.rows = self.validations = self.stragglers = self.taken_back = 0
        self.without_norm = 0
        self.resumes: list[tuple[int, int]] = []
        self.unreached = 0  # resumes that went back farther than what is known
        self._known: deque[StepStats] = deque(maxlen=REACH)
        self._behind: Point | None = None

    def take(self, point: Point) -> Iterator[LogEvent]:
        """One point; what begins or rises with it."""
        if self.last is None or point.step > self.last:
            if self._behind is not None:
                self.stragglers, self._behind = self.stragglers + 1, None
            yield from self.fold(_stats(point, self.name))
        elif self.jumbled:
            self.stragglers += 1
        elif self._behind is None:
            self._behind = point
        else:
            yield from self.finish()
            yield from self.take(point)

    @property
    def jumbled(self) -> bool:
        """Whether the steps go back so often that these are no resumes."""
        return len(self.resumes) >= max(_MOST_RESUMES, self.rows // _ROWS_A_RESUME)

    def finish(self) -> Iterator[LogEvent]:
        """No more points for now: a point that lies behind is the first after a resume."""
        if self._behind is not None:
            behind, self._behind = self._behind, None
            self._go_back(behind.step)
            yield from self.fold(_stats(behind, self.name))

    def begins_again(self, point: Point) -> bool:
        """Whether the point is of another run: the steps have come back to the first one."""
        started = self.first is not None and self.last is not None and self.last > self.first
        return started and self.first is not None and point.step <= self.first

    def fold(self, stats: StepStats) -> Iterator[LogEvent]:
        """One step that follows the last one."""
        step = stats.step
        self.first = step if self.first is None else min(self.first, step)
        self.last = step
        self.rows += 1
        self.without_norm += math.isnan(stats.grad_norm)
        self.traits.add(step, stats.loss)
        self.curves.loss.add(step, stats.loss)
        self.curves.grad_norm.add(step, stats.grad_norm)
        if stats.validation_loss is not None:
            self.validations += 1
            self.curves.validation.add(step, stats.validation_loss)
        self._known.append(stats)
        for detector in self.detectors.values():
            z, event = detector.fold(stats)
            if detector is self.detector:
                self.curves.z.add(step, z)
                if event is not None:
                    yield event

    def collapse(self, step: int, before: Sequence[StepStats]) -> None:
        """A lineage of ours goes on at ``step`` in a new epoch. before: the steps that it rests on."""
        for detector in self.detectors.values():
            detector.collapse(step, before)
        self.curves.cut(step)
        self._known.clear()

    def _go_back(self, step: int) -> None:
        assert self.last is not None
        self.resumes.append((self.last, step))
        while self._known and self._known[-1].step >= step:
            self._known.pop()
            self.rows -= 1
            self.taken_back += 1
        self.unreached += not self._known
        for detector in self.detectors.values():
            detector.go_back(step, self._known)
        self.curves.cut(step)
        self.last = self._known[-1].step if self._known else None

    def remarks(self) -> Iterator[str]:
        """What is to be known of its rows, in words."""
        yield from self.traits.remarks()
        if self.resumes:
            shown = ", ".join(f"{a:,} to {b:,}" for a, b in self.resumes[:_MOST_TOLD])
            more = ", ..." if len(self.resumes) > _MOST_TOLD else ""
            times = "once" if len(self.resumes) == 1 else f"{len(self.resumes):,} times"
            yield (
                f"the steps go back {times} ({shown}{more}): the last value of each counts,"
                f" {self.taken_back:,} rows were replaced"
            )
        if self.unreached:
            yield (
                f"a resume went back farther than {REACH:,} rows: the detector began anew there, and the"
                " rows before are counted twice"
            )
        if self.jumbled:
            yield "this log seems to be of several ranks or runs at once: give one of them"
        if self.stragglers:
            rows = "1 row lies" if self.stragglers == 1 else f"{self.stragglers:,} rows lie"
            yield f"{rows} behind the steps around: left out"
        if self.rows and self.without_norm == self.rows:
            yield "no gradient norm: a spike of the data cannot be told from one of the state"


def _stats(point: Point, run: str) -> StepStats:
    return StepStats(
        run_uid=run,
        epoch=0,
        attempt=0,
        rank=0,
        step=point.step,
        loss=point.loss,
        grad_norm=point.grad_norm,
        grad_norm_clipped=point.grad_norm,
        learning_rate=point.learning_rate,
        tokens=0,
        validation_loss=point.validation,
        attention_entropy=point.attention_entropy,
        attention_logit_max=point.attention_logit_max,
    )
