"""Waiting for a store that is away: a passing fault ends nobody's start."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from forkcast_wire import beats
from forkcast_wire.store.errors import StoreUnavailable

T = TypeVar("T")
#: Between two tries, seconds; it doubles from the first to the last.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
_log = structlog.get_logger()


def wait_for(
    call: Callable[[], T],
    stop: threading.Event,
    *,
    tell: Callable[[StoreUnavailable], object] | None = None,
) -> T:
    """The result of ``call``, called again while the store is away, however long that takes.

    tell: hears of each failure; by default it is logged. Raises the last StoreUnavailable once
    ``stop`` is set, and whatever else ``call`` raises.
    """
    wait = FIRST_WAIT
    while True:
        try:
            with beats.during(beats.Phase.STORE):
                return call()
        except StoreUnavailable as error:
            if stop.is_set():
                raise
            if tell is None:
                _log.warning("store.away", error=str(error), next_try_seconds=round(wait, 1))
            else:
                tell(error)
            # spread: the processes of a run must not come back all at once
            if stop.wait(wait * (0.75 + secrets.randbelow(500) / 1000)):
                raise
            wait = min(2 * wait, LONGEST_WAIT)
