"""What the run's store shows, read in a thread of its own: a store that is slow, silent or away
must hold up neither the supervision of the processes nor Ctrl-C.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from forkcast_cli.view import RunView
from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreError, StoreUnavailable

#: Between two looks at a folder, and at a bucket (where each costs money) while a branch is open,
#: and while none is, seconds.
_FOLDER_SECONDS, _BUCKET_BUSY_SECONDS, _BUCKET_SECONDS = 0.2, 2.0, 5.0
_MOST_SECONDS = 30.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest view, and whether the store answers now.

    at: when its look began, monotonic seconds. away: why the last look failed, '' if it did not.
    """

    view: RunView | None = None
    at: float = 0.0
    away: str = ""


def pause(storage: Storage, seen: Seen, failures: int) -> float:
    """Seconds until the next look; after failures in a row it doubles, up to half a minute."""
    seconds = _FOLDER_SECONDS
    if storage.bucket is not None:
        busy = seen.view is not None and seen.view.active > 0
        seconds = _BUCKET_BUSY_SECONDS if busy else _BUCKET_SECONDS
    return min(seconds * 2.0 ** min(failures, 10), max(seconds, _MOST_SECONDS))


class StoreWatch:
    """Looks again and again. `seen` never waits."""

    def __init__(self, storage: Storage, read: Callable[[], RunView]) -> None:
        self._storage, self._read = storage, read
        self._wake, self._over = threading.Event(), threading.Event()
        self._looked = threading.Event()
        self.seen = Seen()
        self._asked_for = 0.0
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Look now, not only when it is time."""
        self._wake.set()

    def complete_since(self, at: float) -> bool | None:
        """Whether the run is complete by a look that began after ``at`` (monotonic seconds); None
        while there was none: then one is asked for.
        """
        seen = self.seen
        if seen.view is not None and seen.at > at:
            return seen.view.complete is not None
        if self._asked_for != at:
            self._asked_for = at
            self.ask()
        return None

    def first(self, seconds: float) -> Seen:
        """What the first look showed, waiting at most so long for it."""
        self._looked.wait(seconds)
        return self.seen

    def close(self) -> None:
        """No further look. One that still waits for the store is left to itself."""
        self._over.set()
        self._wake.set()

    def _run(self) -> None:
        failures = 0
        while not self._over.is_set():
            self._wake.clear()
            began = time.monotonic()
            try:
                view = self._read()  # ends with the first operation that is not answered
                self.seen, failures = Seen(view, began), 0
            except (StoreError, ValueError, OSError) as error:
                why = error.why if isinstance(error, StoreUnavailable) else str(error)
                self.seen = Seen(self.seen.view, self.seen.at, why)
                failures += 1
                _log.warning("supervisor.store_away", error=str(error))
            self._looked.set()
            self._wake.wait(pause(self._storage, self.seen, failures))
