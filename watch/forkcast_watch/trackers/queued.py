"""A tracker on a thread of its own: whatever it does, it neither holds up nor ends a training."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from forkcast.records import Index, StepStats
from forkcast_watch.trackers.base import Event, Held, Tracker
from forkcast_wire.echo import first_line

#: Calls that wait at most; of a tracker that is further behind the oldest are left out.
MOST_WAITING: Final = 4096
#: Calls left out after a failure, at most; twice as many after each in a row.
_MOST_SKIPPED: Final = 1024


class Queued:
    """Passes steps and events on, in order. A trouble is told once when it begins, and once when it is
    over, with what was left out.
    """

    def __init__(self, tracker: Tracker, name: str, tell: Callable[[str], None]) -> None:
        """name: for what is told. tell: gets one line; called on either thread."""
        self._tracker, self._name, self._tell = tracker, name, tell
        self._calls: deque[Callable[[], None]] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._failures = self._skip = self._lost = 0
        self._behind = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def held(self) -> Held:
        """See `Tracker.held`."""
        return self._tracker.held()

    def step(self, stats: StepStats, index: Index | None) -> None:
        """Returns at once."""
        self._put(partial(self._tracker.step, stats, index))

    def event(self, event: Event) -> None:
        """Returns at once."""
        self._put(partial(self._tracker.event, event))

    def close(self, seconds: float = 10.0) -> None:
        """Wait at most so long until all is written; what is not by then may be lost."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._tell(f"tracker {self._name}: not done after {seconds:g} s; left behind")

    def _put(self, call: Callable[[], None]) -> None:
        with self._change:
            if self._closing:
                return
            late = len(self._calls) >= MOST_WAITING
            if late:
                self._calls.popleft()
                self._lost += 1
            self._calls.append(call)
            self._change.notify()
        if late and not self._behind:
            self._behind = True
            self._tell(f"tracker {self._name}: too slow; it lacks steps; training goes on")

    def _work(self) -> None:
        while (call := self._next()) is not None:
            if self._skip > 0:
                self._skip -= 1
                self._lost += 1
            else:
                self._try(call)
        with self._told_once():
            self._tracker.close()

    def _next(self) -> Callable[[], None] | None:
        with self._change:
            while not self._calls and not self._closing:
                self._change.wait()
            return self._calls.popleft() if self._calls else None

    def _try(self, call: Callable[[], None]) -> None:
        failures = self._failures
        with self._told_once():
            call()
        if self._failures > failures:
            self._skip = min(1 << min(failures, 10), _MOST_SKIPPED)
            self._lost += 1
        elif failures:
            self._tell(f"tracker {self._name}: works again; it lacks {self._lost} records")
            self._failures = 0

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Count a failure; tell the first in a row."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  a tracker may raise anything
            self._failures += 1
            if self._failures == 1:
                what = f"{type(error).__name__}: {first_line(error)}"
                self._tell(f"tracker {self._name}: {what}; training goes on without it")
