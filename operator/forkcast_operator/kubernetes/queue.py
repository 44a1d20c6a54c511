"""Keys that want a look, each worked on by one worker at a time. Nothing is lost, nothing piles up.

A key added while it waits is one key; added while it is worked on, it is looked at once more
afterwards. A look that fails comes again after a while that doubles, with jitter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
_FIRST_SECONDS: Final = 0.5
_MOST_SECONDS: Final = 60.0


class WorkQueue(Generic[K]):
    """Of one event loop."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Look at the key soon."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Look at the key in so many seconds, or sooner where it is added before."""
        if key in self._waiting or key in self._again:
            return
        if timer := self._timers.pop(key, None):
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def forget(self, key: K) -> None:
        """The key is gone: no timer and no count of failures is left of it."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._failures.pop(key, None)

    async def work(self, look: Callable[[K], Awaitable[float | None]]) -> None:
        """Look at keys until cancelled. ``look`` returns after how many seconds it wants to look
        again, None for when something happens; what it raises is its own to report.
        """
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            wait: float | None = None
            try:
                wait = await look(key)
            except Exception:  # noqa: BLE001  the worker outlives any key
                wait = self._backoff(key)
            else:
                self._failures.pop(key, None)
            finally:
                self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif wait is not None:
                self.add_after(key, wait)

    def _backoff(self, key: K) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = min(_FIRST_SECONDS * 2.0**failures, _MOST_SECONDS)
        return float(longest * random.uniform(0.5, 1.0))
