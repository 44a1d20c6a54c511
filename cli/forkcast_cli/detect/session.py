"""A log through the detector: which run a row is of, and what is told while it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from forkcast_cli.detect.judge import Happening, Judge
from forkcast_cli.detect.watched import WatchedRun
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.opening import Log, nothing_fits
from forkcast_cli.logs.points import Assembler, Point
from forkcast_monitor.config import DetectorConfig

_MOST_RUNS: Final = 64

#: Told of each happening as it comes: the run, and what happened.
Tell = Callable[[WatchedRun, Happening], None]


class Session:
    """Takes a log to its end. configs: detectors by name, the first of them is the one that is told.

    A run whose steps come back to its first one is followed by another run; runs that a log holds side by
    side have names of their own.
    """

    def __init__(self, configs: Mapping[str, DetectorConfig], tell: Tell) -> None:
        self.format = ""
        self.columns = Columns()
        self.runs: list[WatchedRun] = []
        self._log: Log | None = None
        self._configs, self._tell = configs, tell
        self._assembler: Assembler | None = None
        self._current: dict[str, WatchedRun] = {}
        self._anew: dict[str, Point] = {}
        self._numbers: dict[str, int] = {}

    def take(self, log: Log) -> None:
        """The whole log. Raises LogError, OSError."""
        self._log, self.format, self.columns = log, log.format, log.columns
        assembler = self._assembler = Assembler(log.columns)
        for row in log.rows:
            for run, point in assembler.take(row):
                self._route(run, point)
        self.end()
        if not self.runs:
            raise self._without_points(log)

    def idle(self) -> None:
        """The source is silent: what it has said so far is complete."""
        if self._assembler is not None:
            for run, point in self._assembler.flush():
                self._route(run, point)

    def end(self) -> None:
        """No more will come."""
        self.idle()
        for run in self._anew:
            self._current[run].stragglers += 1
        self._anew.clear()
        for watched in self._current.values():
            self.tell_all(watched, watched.finish())

    def remarks(self) -> Iterator[str]:
        """What is to be known of the whole log, in words."""
        if self._log is None or self._assembler is None:
            return
        yield from self._log.remarks()
        if self._assembler.counted_steps:
            yield "it has no column of steps: rows are counted, and step 10 is the eleventh row"
        for what, count in self._assembler.counts.items():
            rows = "1 row" if count == 1 else f"{count:,} rows"
            yield f"{rows} {what}"

    def _without_points(self, log: Log) -> LogError:
        assert self._assembler is not None
        garbled = [f"{name} {value!r}" for name, value in self._assembler.examples.items()]
        if garbled:
            what = f"no row has both a step and a loss; such as {', '.join(garbled)}"
            return LogError(what, "correct the log, or name its columns by --columns")
        return nothing_fits(log.columns)

    def _route(self, run: str, point: Point) -> None:
        """To the run that it is of. One that begins again is taken for another run once it goes on."""
        watched = self._current.get(run)
        anew = self._anew.pop(run, None)
        if watched is None:
            watched = self.begin(run)
        elif anew is not None:
            assert watched.last is not None
            if point.step > watched.last:
                watched.stragglers += 1
            else:
                self.tell_all(watched, watched.finish())
                watched = self.begin(run)
                self.tell_all(watched, watched.take(anew))
        if watched.begins_again(point):
            self._anew[run] = point
            return
        self.tell_all(watched, watched.take(point))

    def begin(self, run: str) -> WatchedRun:
        """A run of the log begins. Raises LogError if there are too many."""
        if len(self.runs) == _MOST_RUNS:
            raise LogError(f"holds more than {_MOST_RUNS} runs", "give fewer at a time")
        number = self._numbers[run] = self._numbers.get(run, 0) + 1
        name = run or "run"
        if number > 1:
            name = f"{name} {number}"
        judges = {one: Judge(config, name) for one, config in self._configs.items()}
        watched = self._current[run] = WatchedRun(name, judges)
        self.runs.append(watched)
        return watched

    def tell_all(self, watched: WatchedRun, happenings: Iterator[Happening]) -> None:
        """Of a run, as they come."""
        for happening in happenings:
            self._tell(watched, happening)
