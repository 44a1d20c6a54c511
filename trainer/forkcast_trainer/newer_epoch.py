"""What follows the present epoch, read off the step's path: a store may be slow, or never answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from forkcast.lineage import LineageEntry
from forkcast_trainer.checkpoint import Snapshot
from forkcast_wire.store import StoreError

_log = structlog.get_logger()
#: Between two tries of what a store or a damaged state has refused.
_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True)
class NewerEpoch:
    """An epoch's entry in the lineage and its state, checked against the model."""

    entry: LineageEntry
    saved: Snapshot


@dataclass(frozen=True)
class Newest:
    """The present epoch is the newest in the lineage."""


class NewerEpochReader:
    """Reads in a thread of its own, at most one at a time; only `poll` and `wait` are called."""

    def __init__(self, read: Callable[[], NewerEpoch | None]) -> None:
        """read: the newest epoch and its state, None if the lineage has none newer than the
        present; it may raise StoreError, ValueError and OSError: then it is tried again.
        """
        self._read = read
        self._thread: threading.Thread | None = None
        self._found: NewerEpoch | Newest | None = None
        self._not_before = 0.0
        self._done = threading.Event()

    def poll(self) -> NewerEpoch | Newest | None:
        """What was found since the last call; None while it is being read, which this begins. Never
        waits.
        """
        if self._thread is not None and self._done.is_set():
            self._thread.join()
            self._thread = None
            if self._found is not None:
                return self._found
        if self._thread is None and time.monotonic() >= self._not_before:
            self._found = None
            self._done.clear()
            self._thread = threading.Thread(target=self._run, name="newer-epoch", daemon=True)
            self._thread.start()
        return None

    def wait(self, seconds: float) -> None:
        """Until what is being read is here, at most ``seconds``; so long if nothing is being read."""
        if self._thread is None:
            time.sleep(seconds)
        else:
            self._done.wait(seconds)

    @property
    def reading(self) -> bool:
        """Whether it waits for the store now."""
        return self._thread is not None and not self._done.is_set()

    def _run(self) -> None:
        try:
            self._found = self._read() or Newest()
        except (StoreError, ValueError, OSError) as error:
            _log.warning("train.lineage_unreadable", error=str(error))
            self._not_before = time.monotonic() + _RETRY_SECONDS
        finally:
            self._done.set()
