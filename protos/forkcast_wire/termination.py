"""SIGTERM and SIGINT, from the first instruction of a process to its last.

Python has three gaps. While it imports (torch: seconds) nobody has set a handler yet, and PID 1 of a
container has no default action: the signal is lost. A loop of asyncio gives SIGTERM its deadly default
back when it closes, and the interpreter does so when it ends: a second SIGTERM then kills a process
that is draining, or has drained. So a process calls `end_at_once` before its slow imports, takes the
event of `stop_event_on_sigterm` as soon as it has something to lose, and ends by `leave`.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stop(threading.Event):
    """An event that a signal handler may set.

    `threading.Event.set` takes a lock, which the handler would wait for in vain when the interrupted
    code (a `wait` of the same thread) holds it. Here a pipe becomes readable. It is never cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reader, self._writer = os.pipe()
        self._stopped = False

    def fileno(self) -> int:
        """Readable as soon as the event is set, for an event loop's `add_reader`."""
        return self._reader

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self._stopped

    def set(self) -> None:
        """Set it, for good; what waits goes on."""
        if not self._stopped:
            self._stopped = True
            os.write(self._writer, b".")

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is set, at most ``timeout`` seconds; whether it is set."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self._stopped


def end_at_once() -> None:
    """From here on SIGTERM and SIGINT end the process, with 128 + the signal's number, also as PID 1.

    For a process that has nothing to lose yet. Call it from the main thread.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    _handle(end)


def stop_event_on_sigterm() -> Stop:
    """An event that SIGTERM and SIGINT set, however often they come; call from the main thread."""
    event = Stop()

    def stop(_number: int, _frame: FrameType | None) -> None:
        event.set()

    _handle(stop)
    return event


def leave(code: int) -> NoReturn:
    """End the process with this code. What comes now has nothing to stop any more, and must not
    turn a clean end into a death by signal: unlike a handler, an ignored signal stays ignored while
    the interpreter ends. Call it from the main thread.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
