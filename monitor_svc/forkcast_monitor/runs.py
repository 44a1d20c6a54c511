"""The runs of one monitor process, each on its own: lock, streams, directives, series."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from forkcast_monitor import metrics
from forkcast_monitor.budget import RUN_DISK_BYTES
from forkcast_monitor.directives import Waiting
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration, RunFolders
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.standing import Standing
from forkcast_monitor.streams import Stream

_log = structlog.get_logger()
_T = TypeVar("_T")
#: What blocks (the disk) happens in these threads; one run's wait is not the others'.
_DISK_THREADS = 4
#: Threads that wait for the disk before an ack; they hold nothing else up.
_SYNC_THREADS = 16
MOST_RUNS = 10_000


class UnknownRunError(LookupError):
    """No such run is registered here."""


class UnusableRunError(UnknownRunError):
    """The run's state on disk cannot be read."""


class ConflictError(ValueError):
    """The run is registered in another namespace."""


class Bell:
    """Wakes all that have listened since the last ring. `listen` before looking: then nothing that
    happens in between is missed.
    """

    def __init__(self) -> None:
        self._ring: asyncio.Future[None] | None = None

    def listen(self) -> asyncio.Future[None]:
        """Done at the next ring. Several may wait for the same one: shield it."""
        if self._ring is None:
            self._ring = asyncio.get_running_loop().create_future()
        return self._ring

    def ring(self) -> None:
        """Wake them."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.set_result(None)


@dataclass(eq=False)
class Hosted:
    """One run and all that is held for it. ``opened`` is made when it is first needed, and held
    by one task at a time (`Runs.use`). stood: how the run stood after its last batch, for readers that do
    not wait for a busy one.
    """

    registration: Registration
    make: Callable[[Registration], WatchedRun]
    series: metrics.RunSeries
    opened: WatchedRun | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    streams: set[Stream] = field(default_factory=set)
    directives: Waiting = field(default_factory=Waiting)
    gone: bool = False
    stood: Standing | None = None
    reported: float | None = None

    @property
    def names(self) -> dict[str, str]:
        """Whose log lines these are."""
        return {"run": self.registration.name, "namespace": self.registration.namespace}


class Runs:
    """All runs by uid. With a folder any number, which a restart knows; without, the one given.
    disk_bytes: of each one's history.
    """

    def __init__(
        self,
        folder: Path | None,
        series: metrics.SeriesTable | None = None,
        *,
        disk_bytes: int = RUN_DISK_BYTES,
    ) -> None:
        self._disk_bytes = disk_bytes
        self._folders = None if folder is None else RunFolders(folder)
        self._series = series or metrics.SeriesTable()
        self._hosted: dict[str, Hosted] = {}
        self._pool = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        self._syncing = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="sync")
        self._registering = asyncio.Lock()
        self._folding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.fired = Bell()
        if self._folders is not None:
            for one in self._folders.all():
                self._host(one, self._make)
        self._count()

    @property
    def sole(self) -> Hosted | None:
        """The one run of a process that serves one; None where runs are registered."""
        return None if self._folders is not None else next(iter(self._hosted.values()))

    @property
    def all(self) -> list[Hosted]:
        """All runs, in no particular order."""
        return list(self._hosted.values())

    def find(self, run_uid: str) -> Hosted:
        """Raises UnknownRunError."""
        try:
            return self._hosted[run_uid]
        except KeyError:
            raise UnknownRunError("no such run is registered here") from None

    def host(self, registration: Registration, run: WatchedRun) -> None:
        """Serve a run that somebody else keeps on disk."""
        self._host(registration, lambda _: run)
        self._count()

    async def register(self, registration: Registration) -> bool:
        """Serve a run from now on; whether it is new. Raises ValueError where a field is wrong or
        there are too many runs, ConflictError, OSError.
        """
        assert self._folders is not None
        registration.check()
        async with self._registering:
            hosted = self._hosted.get(registration.run_uid)
            if hosted is None:
                if len(self._hosted) >= MOST_RUNS:
                    raise ValueError(f"run_uid: {MOST_RUNS} runs are registered; forget some")
                await self.blocking(self._folders.save, registration)
                self._host(registration, self._make)
                self._count()
                self.fired.ring()
                return True
            if hosted.registration != registration:
                await self._replace(hosted, registration)
            return False

    async def _replace(self, hosted: Hosted, new: Registration) -> None:
        """Take another registration. Where the rules differ, the next use judges the history anew
        by them; where the name does, a run of the same namespace has adopted this one's records.
        """
        assert self._folders is not None
        old = hosted.registration
        if old.namespace != new.namespace:
            raise ConflictError("run_uid: registered in another namespace")
        async with hosted.lock:
            await self.blocking(self._folders.save, new)
            hosted.registration, hosted.stood = new, None
            if old.name != new.name:
                self._series.close(old.run_uid, hosted.series)
                hosted.series = self._series.open(new.run_uid, new.namespace, new.name)
                hosted.series.streams(len(hosted.streams))
            if hosted.opened is not None and new.config() != old.config():
                await self.blocking(hosted.opened.close)
                hosted.opened = None

    async def forget(self, run_uid: str) -> bool:
        """Delete a run; whether there was one. Its streams end at their next batch."""
        assert self._folders is not None
        async with self._registering:
            hosted = self._hosted.get(run_uid)
            if hosted is None:
                return False
            async with hosted.lock:
                hosted.gone = True
                if hosted.opened is not None:
                    await self.blocking(hosted.opened.abandon)
                await self.blocking(self._folders.delete, run_uid)
                del self._hosted[run_uid]
            self._series.close(run_uid, hosted.series)
            self._count()
            return True

    @asynccontextmanager
    async def use(self, hosted: Hosted) -> AsyncIterator[WatchedRun]:
        """The run, for one task at a time. Raises UnknownRunError where it has been forgotten, or
        cannot be opened.
        """
        async with hosted.lock:
            if hosted.gone:
                raise UnknownRunError("the run has been forgotten")
            if hosted.opened is None:
                try:
                    hosted.opened = await self.folding(hosted, hosted.make, hosted.registration)
                except Exception as error:
                    _log.exception("monitor.run_not_opened", **hosted.names)
                    reason = f"its state cannot be read: {type(error).__name__}"
                    raise UnusableRunError(reason) from error
            yield hosted.opened

    async def opened(self, hosted: Hosted) -> WatchedRun:
        """The run, for what may be read while another task holds it. Raises UnknownRunError."""
        if hosted.opened is None or hosted.gone:
            async with self.use(hosted) as run:
                return run
        return hosted.opened

    async def blocking(self, call: Callable[..., _T], *given: object) -> _T:
        """``call`` in a thread, for what waits for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *given)

    async def folding(self, hosted: Hosted, call: Callable[..., _T], *given: object) -> _T:
        """``call`` in a thread, for what may fold a history again, which takes seconds: one at a time
        of each namespace, so that whoever has many runs, or says hello again and again, leaves threads
        to the others.
        """
        async with self._folding[hosted.registration.namespace]:
            return await self.blocking(call, *given)

    async def sync(self, run: WatchedRun) -> None:
        """Wait until what a run has accepted is on the disk: once a batch. Raises OSError."""
        if run.unsynced:
            await asyncio.get_running_loop().run_in_executor(self._syncing, run.sync)

    def rest(self, hosted: Hosted) -> None:
        """Close the files of a run that nobody reports for now; the next record opens them."""
        if hosted.opened is None or hosted.streams or hosted.lock.locked():
            return
        try:
            hosted.opened.rest()
        except OSError as error:  # its rows are not acknowledged: they come again
            _log.warning("monitor.run_not_synced", error=str(error), **hosted.names)

    async def close(self) -> None:
        """Close every run into Parquet, with a snapshot at its end."""
        for hosted in self.all:
            async with hosted.lock:
                hosted.gone = True
                if hosted.opened is not None:
                    try:
                        await self.blocking(hosted.opened.close)
                    except Exception:  # noqa: BLE001  the other runs close all the same
                        _log.exception("monitor.run_not_closed", **hosted.names)
        self._pool.shutdown()
        self._syncing.shutdown()

    def told(self, hosted: Hosted, before: int, run: WatchedRun) -> None:
        """Say that triggers beyond ``before`` have fired."""
        fresh = run.triggers[before:]
        for trigger in fresh:
            hosted.series.triggered(trigger)
            rule = trigger.rule.value
            _log.info("monitor.trigger", **hosted.names, id=trigger.id, rule=rule, z=trigger.z)
        if fresh:
            self.fired.ring()

    def _host(self, registration: Registration, make: Callable[[Registration], WatchedRun]) -> None:
        uid = registration.run_uid
        series = self._series.open(uid, registration.namespace, registration.name)
        self._hosted[uid] = Hosted(registration, make, series)

    def _make(self, registration: Registration) -> WatchedRun:
        assert self._folders is not None
        folder = self._folders.path(registration.run_uid)
        history = History(folder / "statistics")
        run = WatchedRun(registration.config(), registration.run_uid, folder / "monitor", history)
        run.total_steps, run.disk_bytes = registration.total_steps, self._disk_bytes
        return run

    def _count(self) -> None:
        metrics.RUNS.set(len(self._hosted))


def seconds_since(hosted: Hosted) -> float | None:
    """Since a record was accepted last."""
    return None if hosted.reported is None else time.monotonic() - hosted.reported


def visible(runs: Iterable[Hosted], may_see: Callable[[str], bool]) -> list[Hosted]:
    """Those whose namespace a caller may see, in the order of their names."""
    seen = [one for one in runs if may_see(one.registration.namespace)]
    return sorted(seen, key=lambda one: (one.registration.namespace, one.registration.name))
