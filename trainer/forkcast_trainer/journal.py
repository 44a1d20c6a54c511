"""The trainer's own history: every step's record into the run's store, off the step's path.

The training's thread only appends to a bounded list. The saver's thread writes chunks: a small one
before each state it publishes, so that a resumed run misses no row, and one large one in the place of
the small ones with each checkpoint. A store that is away costs the oldest rows once the list is full.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import structlog

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StepStats
from forkcast_wire import history, keys
from forkcast_wire.statistics import stats_row
from forkcast_wire.store import AlreadyExists, KeyMissing, StoreError

_log = structlog.get_logger()
#: So many rows wait for the store at most, about a kilobyte each.
MOST_ROWS = 8192
#: From so many rows on, they are one chunk whatever is saved.
CHUNK_ROWS = 1024


class Journal:
    """dropped: rows that the store did not take in time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: deque[StepStats] = deque(maxlen=MOST_ROWS)
        self._next: list[dict[str, Any]] = []  # taken by the saver's thread, in no chunk yet
        self._rows: list[dict[str, Any]] = []  # of one epoch and attempt, in no large chunk yet
        self._stored = 0  # so many of them are in small ones
        self._small: list[str] = []
        self.dropped = self._told = 0

    def note(self, stats: StepStats) -> bool:
        """Take one record, for the training's thread; True if a chunk is due now."""
        with self._lock:
            self.dropped += len(self._waiting) == MOST_ROWS
            self._waiting.append(stats)
            return len(self._waiting) % CHUNK_ROWS == 0

    def write(self, *, whole: bool) -> None:
        """Write what waits, for the saver's thread; whole: as one chunk with the rows of the small
        ones, which go. What fails is logged and comes again the next time.
        """
        self._take()
        try:
            while self._next or self._stored < len(self._rows):
                run = _leading(self._next, _of((self._rows or self._next)[0]))
                self._rows += run
                del self._next[: len(run)]
                if whole or self._next or len(self._rows) >= CHUNK_ROWS:
                    self._close()
                else:
                    self._small.append(self._put(self._rows[self._stored :]))
                    self._stored = len(self._rows)
            if whole and self._rows:
                self._close()
        except StoreError as error:
            _log.warning("history.not_written", rows=len(self._rows), error=str(error))

    def _take(self) -> None:
        if len(self._rows) + len(self._next) >= MOST_ROWS:
            return  # the store is away: what waits is bounded, and its oldest are dropped
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
            dropped, self._told = self.dropped - self._told, self.dropped
        if dropped:
            _log.warning("history.dropped", rows=dropped)
        self._next += map(stats_row, taken)

    def _close(self) -> None:
        """One chunk of all rows; then the small ones are needed no more."""
        key = self._put(self._rows)
        small, self._small, self._rows, self._stored = self._small, [], [], 0
        for one in small:
            if one != key:
                self._store.delete(one)

    def _put(self, rows: list[dict[str, Any]]) -> str:
        epoch, attempt = _of(rows[0])
        key = keys.history(epoch, attempt, rows[0]["step"], rows[-1]["step"])
        try:
            self._store.put(key, history.encoded(rows), create=True)
        except AlreadyExists:
            _log.info("history.written_already", key=key)
        return key

    def adopted(self, entry: LineageEntry, attempt: int) -> None:
        """The steps that the winner of a branch took are the first of the epoch it opened."""
        try:
            key = keys.state_history(entry.state.key)
            rows = history.decoded(self._store.get(key)[0], key)
            if rows:
                self._put([{**row, "epoch": entry.epoch, "attempt": attempt} for row in rows])
        except KeyMissing:
            _log.info("history.adopted_unknown", epoch=entry.epoch)
        except (StoreError, ValueError) as error:
            _log.warning("history.adopted_not_written", epoch=entry.epoch, error=str(error))


def _leading(rows: list[dict[str, Any]], key: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows before the first of another epoch or attempt."""
    other = (n for n, row in enumerate(rows) if _of(row) != key)
    return rows[: next(other, len(rows))]


def _of(row: dict[str, Any]) -> tuple[int, int]:
    return row["epoch"], row["attempt"]
