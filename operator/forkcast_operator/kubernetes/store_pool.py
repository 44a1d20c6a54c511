"""Threads for the calls to object stores: each store has a few of its own, and a circuit breaker, so
that one which does not answer costs its own runs their records for a while and nobody else anything.
Of a store's threads a namespace has some at a time: its passes may be long, others' go on beside them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import structlog

from forkcast_wire.manifest import Storage
from forkcast_wire.store import PassTooLong, StoreRefused, StoreUnavailable

T = TypeVar("T")
_THREADS: Final = 4
#: Of them at once for the runs of one namespace.
_PER_NAMESPACE: Final = 2
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

    @property
    def open(self) -> bool:
        """Whether calls are refused, but for trials."""
        return self._open

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


@dataclass(eq=False)
class Work(Generic[T]):
    """A call that waits for a thread, or has one. started: monotonic seconds, None while it waits.
    future: of the event loop that has submitted it.
    """

    namespace: str
    call: Callable[[], T]
    result: Future[T] = field(default_factory=Future)
    started: float | None = None

    def __post_init__(self) -> None:
        self.future = asyncio.wrap_future(self.result)


class StorePool:
    """The threads of one store. Thread-safe."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"store {name}")
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._waiting: deque[Work[Any]] = deque()
        self._running: list[Work[Any]] = []
        self._last_answer = float("-inf")

    @property
    def slow(self) -> bool:
        """Whether no answer is to be expected soon: the circuit is open, or a call hangs."""
        with self._lock:
            now = self._clock()
            started = [work.started for work in self._running if work.started is not None]
            hangs = any(now - one > _COSTLY_SECONDS for one in started)
            return hangs or self._breaker.since is not None

    @property
    def refuses(self) -> bool:
        """Whether the circuit is open."""
        with self._lock:
            return self._breaker.open

    @property
    def why(self) -> str:
        """Why the store does not answer."""
        with self._lock:
            return self._breaker.why or _SILENT

    def submit(self, namespace: str, call: Callable[[], T]) -> Work[T]:
        """Make the call in a thread of this store's, in the order of asking, as soon as the store and
        the namespace have one to spare. The work fails with StoreUnavailable as soon as it begins
        while the circuit is open.
        """
        work = Work(namespace, call)
        with self._lock:
            self._waiting.append(work)
            self._begin()
        return work

    def overdue(self, work: Work[Any]) -> None:
        """A call has been under way for more than a whole pass: the store does not answer, unless it
        has answered others since.
        """
        if work.started is not None and work.started >= self._last_answer:
            self._failed(_SILENT, costly=True)

    def _begin(self) -> None:
        """Give threads to what waits. Under the lock."""
        busy = Counter(work.namespace for work in self._running)
        for work in list(self._waiting):
            if len(self._running) >= _THREADS:
                return
            if busy[work.namespace] < _PER_NAMESPACE:
                busy[work.namespace] += 1
                self._waiting.remove(work)
                self._running.append(work)
                self._threads.submit(self._run, work)

    def _run(self, work: Work[Any]) -> None:
        try:
            if work.result.set_running_or_notify_cancel():
                work.result.set_result(self._call(work))
        except BaseException as error:  # noqa: BLE001  the caller's, whatever it is
            work.result.set_exception(error)
        finally:
            with self._lock:
                self._running.remove(work)
                self._begin()

    def _call(self, work: Work[T]) -> T:
        with self._lock:
            started = self._clock()
            if not self._breaker.admits(started):
                raise StoreUnavailable(self._breaker.why)
            work.started = started
        try:
            made = work.call()
        except (StoreRefused, PassTooLong):  # of this run, maybe: others may be served
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
