"""Threads for the calls to object stores: each store has a few of its own, and a circuit breaker, so
that one which does not answer costs its own runs their records for a while and nobody else anything.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreRefused, StoreUnavailable

T = TypeVar("T")
_THREADS: Final = 4
#: Store time of one pass over a run's records, seconds.
PASS_SECONDS: Final = 12.0
#: A failure that took longer cost a thread its time: the next caller is refused at once.
_COSTLY_SECONDS: Final = 1.0
#: While the circuit is open one call is let through so often, to see whether the store is back.
_TRIAL_SECONDS: Final = 5.0
_SILENT: Final = f"no answer within {PASS_SECONDS:g} s"
_log = structlog.get_logger()


class Breaker:
    """Whether a store is worth a call. Pure: times are the caller's, seconds.

    Closed: every call goes through. A costly failure opens it; then one call every `_TRIAL_SECONDS`
    goes through, and the first answer closes it. An outage begins with a costly failure, or with the
    second cheap one in a row, and ends with an answer. why: what the first failure of it said.
    """

    def __init__(self) -> None:
        self.why = ""
        self.since: float | None = None
        self._open = False
        self._failures = 0
        self._trial_at = 0.0

    def admits(self, now: float) -> bool:
        """Whether a call may begin; a trial counts as begun."""
        if not self._open:
            return True
        if now < self._trial_at:
            return False
        self._trial_at = now + _TRIAL_SECONDS
        return True

    def failed(self, now: float, why: str, *, costly: bool) -> bool:
        """A call got no answer. True if an outage has begun with it."""
        self._failures += 1
        if costly and not self._open:
            self._open, self._trial_at = True, now + _TRIAL_SECONDS
        began = self.since is None and (costly or self._failures > 1)
        if began:
            self.since, self.why = now, why
        return began

    def answered(self, now: float) -> float | None:
        """A call was answered. The length of the outage that has ended with it, else None."""
        self._open, self._failures = False, 0
        since, self.since, self.why = self.since, None, ""
        return now - since if since is not None else None


class StorePool:
    """The threads of one store. Thread-safe."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"store {name}")
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._running: dict[int, float] = {}
        self._numbers = itertools.count()
        self._last_answer = float("-inf")

    @property
    def slow(self) -> bool:
        """Whether no answer is to be expected soon: the circuit is open, or a call hangs."""
        with self._lock:
            now = self._clock()
            hangs = any(now - one > _COSTLY_SECONDS for one in self._running.values())
            return hangs or self._breaker.since is not None

    @property
    def why(self) -> str:
        """Why the store does not answer."""
        with self._lock:
            return self._breaker.why or _SILENT

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Make the call in a thread of this store's. The future fails with StoreUnavailable at once
        while the circuit is open.
        """
        number = next(self._numbers)
        return asyncio.get_running_loop().run_in_executor(self._threads, self._call, number, call)

    def overdue(self) -> None:
        """A call has been under way for a whole pass: the store does not answer."""
        self._failed(_SILENT, costly=True)

    def _call(self, number: int, call: Callable[[], T]) -> T:
        with self._lock:
            started = self._clock()
            if not self._breaker.admits(started):
                raise StoreUnavailable(self._breaker.why)
            self._running[number] = started
        try:
            made = call()
        except StoreRefused:  # of this run, maybe: others may be served
            self._answered()
            raise
        except StoreUnavailable as error:
            took = self._clock() - started
            if started < self._last_answer:  # it hung before, on a connection that is dead
                raise
            raise self._failed(error.why, costly=took > _COSTLY_SECONDS) from error
        except BaseException:
            self._answered()  # whatever it says, the store did answer
            raise
        else:
            self._answered()
            return made
        finally:
            with self._lock:
                del self._running[number]

    def _failed(self, why: str, *, costly: bool) -> StoreUnavailable:
        with self._lock:
            if self._breaker.failed(self._clock(), why, costly=costly):
                _log.warning("store.outage_began", store=self._name, why=why)
            return StoreUnavailable(self._breaker.why or why)

    def _answered(self) -> None:
        with self._lock:
            self._last_answer = self._clock()
            seconds = self._breaker.answered(self._last_answer)
        if seconds is not None:
            _log.warning("store.outage_ended", store=self._name, seconds=round(seconds, 1))


class StorePools:
    """A pool for each store that is used."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str | None, str | None], StorePool] = {}

    def of(self, storage: Storage) -> StorePool:
        """The pool of the store, whatever the prefix."""
        key = (storage.endpoint, storage.bucket)
        if key not in self._pools:
            self._pools[key] = StorePool(f"{storage.endpoint} {storage.bucket}")
        return self._pools[key]
