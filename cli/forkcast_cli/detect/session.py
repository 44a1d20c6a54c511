"""A log through the detector: which run a row is of, and what is reported while it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from forkcast_cli.detect.log_detector import LogDetector, LogEvent
from forkcast_cli.detect.logged_run import LoggedRun
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.names import Role
from forkcast_cli.logs.opening import Log, nothing_fits
from forkcast_cli.logs.points import Assembler, Point
from forkcast_monitor.config import DetectorConfig

_MOST_RUNS: Final = 64
#: Points that show which way the steps of a run go.
_FIRST_POINTS: Final = 8
_FALLING: Final = 0.8
_MOST_NAMED: Final = 4
#: A part of its most is 1 at most, but for rounding.
_ENTROPY_MOST: Final = 1.01

#: Called with each event as it comes, and its run.
OnEvent = Callable[[LoggedRun, LogEvent], None]


class Session:
    """Takes a whole log. configs: detectors by name, the first of them is the one that is reported.

    A run whose steps come back to its first one is followed by another run; runs that a log holds side by
    side have names of their own.
    """

    def __init__(self, configs: Mapping[str, DetectorConfig], on_event: OnEvent) -> None:
        self.format = ""
        self.columns = Columns()
        self.runs: list[LoggedRun] = []
        self._log: Log | None = None
        self._configs, self._on_event = configs, on_event
        self._assembler: Assembler | None = None
        self._current: dict[str, LoggedRun] = {}
        self._anew: dict[str, Point] = {}
        self._numbers: dict[str, int] = {}
        self._waiting: dict[str, list[Point]] = {}
        self.backward = 0

    def take(self, log: Log) -> None:
        """The whole log. Raises LogError, OSError."""
        self._log, self.format, self.columns = log, log.format, log.columns
        assembler = self._assembler = Assembler(log.columns)
        for row in log.rows:
            for run, point in assembler.take(row):
                self._arrive(run, point)
        self.end()
        if not self.runs:
            raise self._without_points(log)
        if assembler.without_step > sum(run.rows for run in self.runs):
            name = log.columns.found[Role.STEP]
            raise LogError(
                f"column {name} is no step: most of its values are no whole numbers, such as"
                f" {assembler.examples[Role.STEP.value]}",
                f"name another by --columns {Role.STEP.value}=NAME, or count the rows by"
                f" --columns {Role.STEP.value}=",
            )

    def idle(self) -> None:
        """The source is silent: what has come so far is complete."""
        if self._assembler is not None:
            for run, point in self._assembler.flush():
                self._arrive(run, point)

    def end(self) -> None:
        """No more will come."""
        self.idle()
        for run, waiting in self._waiting.items():
            self._route_all(run, sorted(waiting) if _falls(waiting) else waiting)
        self.backward = sum(map(_falls, self._waiting.values()))
        self._waiting.clear()
        for run in self._anew:
            self._current[run].stragglers += 1
        self._anew.clear()
        for logged in self._current.values():
            self.report_all(logged, logged.finish())

    def remarks(self) -> Iterator[str]:
        """What is to be known of the whole log, in words."""
        if self._log is None or self._assembler is None:
            return
        yield from self._log.remarks()
        if self.backward:
            yield "its rows run backwards: sorted by step"
        if self._assembler.counted_steps:
            yield "it has no column of steps: rows are counted, and step 10 is the eleventh row"
        if self._assembler.counted_on:
            name = self.columns.found[Role.EPOCH]
            yield f"its steps begin anew in each epoch (column {name}): they were counted on"
        for name in self.columns.missing():
            yield f"no row has the column {name}"
        for role, names in self.columns.unsure().items():
            if names:
                more = ", ..." if len(names) > _MOST_NAMED else ""
                yield (
                    f"{role.value} could also be {', '.join(names[:_MOST_NAMED])}{more}: if it is, name it"
                    f" by --columns {role.value}=NAME"
                )
        for role, names in self.columns.rivals.items():
            if role not in self.columns.found:
                yield (
                    f"each of {', '.join(names[:_MOST_NAMED])} could be {role.value}: none was taken; name"
                    f" it by --columns {role.value}=NAME"
                )
        if self._assembler.entropy_most > _ENTROPY_MOST:
            yield (
                f"attention_entropy goes up to {self._assembler.entropy_most:.2g}, so it is no part of its"
                " most (0 to 1): a collapse is seen late"
            )
        for what, count in self._assembler.counts.items():
            rows = "1 row" if count == 1 else f"{count:,} rows"
            yield f"{rows} {what}"

    def _without_points(self, log: Log) -> LogError:
        assert self._assembler is not None
        garbled = [f"{name} {value!r}" for name, value in self._assembler.examples.items()]
        if garbled:
            what = f"no row has both a step and a loss; such as {', '.join(garbled)}"
            return LogError(what, "correct the log, or name its columns by --columns")
        step, loss = (log.columns.found.get(role) for role in (Role.STEP, Role.LOSS))
        if step is not None and loss is not None and not log.columns.missing():
            what = f"no row has both a step ({step}) and a loss ({loss})"
            return LogError(what, "name its columns by --columns step=NAME,loss=NAME")
        return nothing_fits(log.columns)

    def _arrive(self, run: str, point: Point) -> None:
        """The first points of a run wait until it is known which way its steps go; if they fall, as of a
        table with the newest row on top, so do all others.
        """
        waiting = self._waiting.get(run)
        if waiting is None and run in self._current:
            self._route(run, point)
            return
        waiting = self._waiting.setdefault(run, [])
        waiting.append(point)
        if len(waiting) == _FIRST_POINTS and not _falls(waiting):
            del self._waiting[run]
            self._route_all(run, waiting)

    def _route_all(self, run: str, points: Iterable[Point]) -> None:
        for point in points:
            self._route(run, point)

    def _route(self, run: str, point: Point) -> None:
        """To the run that it is of. One that begins again is taken for another run once it goes on."""
        logged = self._current.get(run)
        anew = self._anew.pop(run, None)
        if logged is None:
            logged = self.begin(run)
        elif anew is not None:
            assert logged.last is not None
            if point.step > logged.last:
                logged.stragglers += 1
            else:
                self.report_all(logged, logged.finish())
                logged = self.begin(run)
                self.report_all(logged, logged.take(anew))
        if logged.begins_again(point):
            self._anew[run] = point
            return
        self.report_all(logged, logged.take(point))

    def begin(self, run: str) -> LoggedRun:
        """A run of the log begins. Raises LogError if there are too many."""
        if len(self.runs) == _MOST_RUNS:
            raise LogError(f"holds more than {_MOST_RUNS} runs", "give fewer at a time")
        number = self._numbers[run] = self._numbers.get(run, 0) + 1
        name = run or "run"
        if number > 1:
            name = f"{name} {number}"
        detectors = {one: LogDetector(config, name) for one, config in self._configs.items()}
        logged = self._current[run] = LoggedRun(name, detectors)
        self.runs.append(logged)
        return logged

    def report_all(self, logged: LoggedRun, events: Iterator[LogEvent]) -> None:
        """Of a run, as they come."""
        for event in events:
            self._on_event(logged, event)


def _falls(points: Sequence[Point]) -> bool:
    """Whether nearly every step is smaller than the one before."""
    falling = sum(later.step < earlier.step for earlier, later in pairwise(points))
    return len(points) > 2 and falling >= _FALLING * (len(points) - 1)
