"""Waiting for a store that is away: a passing fault ends nobody's start."""

from __future__ import annotations

import contextvars
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_of
from typing import TypeVar

import structlog

from forkcast_wire import beats
from forkcast_wire.store.errors import StoreUnavailable

T = TypeVar("T")
#: Between two tries, seconds; it doubles from the first to the last.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
#: A call that is under way when it is time to stop gets so long to end, seconds; between two looks
#: whether it is.
_LAST_SECONDS, _LOOK_SECONDS = 1.0, 0.2
_log = structlog.get_logger()


def wait_for(
    call: Callable[[], T],
    stop: threading.Event | None,
    *,
    tell: Callable[[StoreUnavailable], object] | None = None,
) -> T:
    """The result of ``call``, called again while the store is away, however long that takes. It is
    made in a thread, which is left alone with a store that never answers once ``stop`` is set; in
    this one if there is none.

    tell: hears of each failure; by default it is logged. Raises StoreUnavailable once ``stop`` is
    set, and whatever else ``call`` raises.
    """
    over = stop or threading.Event()
    wait = FIRST_WAIT
    while True:
        try:
            with beats.during(beats.Phase.STORE):
                return call() if stop is None else _unless_stopped(call, stop)
        except StoreUnavailable as error:
            if over.is_set():
                raise
            if tell is None:
                _log.warning("store.away", error=str(error), next_try_seconds=round(wait, 1))
            else:
                tell(error)
            # spread: the processes of a run must not come back all at once
            if over.wait(wait * (0.75 + secrets.randbelow(500) / 1000)):
                raise
            wait = min(2 * wait, LONGEST_WAIT)


def _unless_stopped(call: Callable[[], T], stop: threading.Event) -> T:
    """The result of ``call``. Raises what it raises, and StoreUnavailable soon after ``stop`` is set
    if there is none by then.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised again below
            made.set_exception(error)

    context = contextvars.copy_context()  # a caller's deadline holds there, too
    threading.Thread(target=context.run, args=(run,), name="store-call", daemon=True).start()
    while not wait_of([made], _LOOK_SECONDS).done:
        if stop.is_set() and not wait_of([made], _LAST_SECONDS).done:
            raise StoreUnavailable("stopped before the store answered")
    return made.result()
