"""Passes over the runs' records, in threads; the looks at runs do not wait for a store that is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from forkcast_operator.kubernetes.ledger import Look
from forkcast_operator.kubernetes.store_pool import PASS_SECONDS, StorePools, Work
from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreUnavailable

#: A look goes on without the records if they have not come by then, and comes again with them.
PATIENCE_SECONDS: Final = 1.0
#: A pass ends its own requests after PASS_SECONDS; a thread that is not back a little later hangs.
OVERDUE_SECONDS: Final = PASS_SECONDS + 2.0
#: What a pass saw so long ago is not worth acting on, seconds.
_STALE_SECONDS: Final = 60.0


@dataclass
class Pending:
    """A pass that is under way, or waits for a thread. told: whether it was said to be overdue."""

    work: Work[Look]
    told: bool = False

    @property
    def future(self) -> asyncio.Future[Look]:
        """What it has seen."""
        return self.work.future

    def lasted(self) -> float:
        """Seconds since it got a thread."""
        started = self.work.started
        return time.monotonic() - started if started is not None else 0.0


class Passes:
    """Of all runs. wake: called with a run's key when a pass has come late."""

    def __init__(
        self, wake: Callable[[tuple[str, str]], None], *, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.pools = StorePools()
        self._wake, self._patience = wake, patience
        self._pending: dict[str, Pending] = {}

    def busy(self, uid: str) -> bool:
        """Whether a thread still works on the run's records."""
        return uid in self._pending and not self._pending[uid].future.done()

    def forget(self, uid: str) -> None:
        """The run is gone."""
        self._pending.pop(uid, None)

    async def look(
        self, key: tuple[str, str], uid: str, storage: Storage, work: Callable[[], Look]
    ) -> Look | None:
        """What a pass over the run's records saw: of one that ``work`` makes now, or of one that was
        under way; None if it has not come back yet.

        Raises what the pass raised, and StoreUnavailable if it has been under way for too long. One
        that waits for a thread is not under way: it takes as long as the passes before it.
        """
        pool = self.pools.of(storage)
        pending = self._pending.get(uid)
        if pending is not None and pending.future.done() and self._stale(pending):
            pending = None
        if pending is None:
            slow = pool.slow
            pending = Pending(pool.submit(key[0], work))
            self._pending[uid] = pending
            # one that is refused at once comes at once
            await asyncio.wait({pending.future}, timeout=0.05 if slow else self._patience)
            if not pending.future.done():
                pending.future.add_done_callback(lambda future: self._came(key, future))
        if pending.future.done():
            del self._pending[uid]
            return pending.future.result()
        if pending.work.started is None:
            if pool.refuses:
                raise StoreUnavailable(pool.why)
            return None
        if pending.lasted() < OVERDUE_SECONDS:
            return None
        if not pending.told:
            pending.told = True
            pool.overdue(pending.work)
        raise StoreUnavailable(pool.why)

    def _came(self, key: tuple[str, str], future: asyncio.Future[Look]) -> None:
        if not future.cancelled():
            future.exception()  # retrieved, in case nobody asks for it any more
        self._wake(key)

    @staticmethod
    def _stale(pending: Pending) -> bool:
        return pending.lasted() >= _STALE_SECONDS
