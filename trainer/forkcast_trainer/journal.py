"""The trainer's own history: every step's record into the run's store, off the step's path.

The training's thread only appends to a bounded list. The saver's thread writes chunks: a small one
before each state it publishes, so that a resumed run misses no row, and one large one in the place of
the small ones with each checkpoint. The steps of a winner that was adopted are written likewise,
before any state of the epoch that it opened. A store that is away costs the oldest rows once the list
is full; `missing` counts the steps that a state is published without.
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
        self._adopted: list[tuple[LineageEntry, int]] = []  # their rows are not yet written
        self._lost = 0  # rows that can never be written
        self.dropped = self._told = 0

    def note(self, stats: StepStats) -> bool:
        """Take one record, for the training's thread; True if a chunk is due now."""
        with self._lock:
            self.dropped += len(self._waiting) == MOST_ROWS
            self._waiting.append(stats)
            return len(self._waiting) % CHUNK_ROWS == 0

    def adopted(self, entry: LineageEntry, attempt: int) -> None:
        """The steps that the winner of a branch took are the first of the epoch it opened: they are
        written with what comes next, so before any state of it.
        """
        self._adopted.append((entry, attempt))

    def write(self, *, whole: bool) -> StoreError | None:
        """Write what waits, for the saver's thread; whole: as one chunk with the rows of the small
        ones, which go. What fails is logged and comes again the next time. Returns what kept rows
        from being written, None if all are.
        """
        try:
            while not self._take():  # there was no room for all that waits
                self._put_all(whole=whole)
            self._put_all(whole=whole)
        except StoreError as error:
            rows = len(self._next) + len(self._rows) - self._stored
            if not rows and not self._adopted:  # a small chunk was not deleted: it does no harm
                return None
            _log.warning("history.not_written", rows=rows, error=str(error))
            return error
        except (
            ValueError,
            TypeError,
            OverflowError,
        ) as error:  # no chunk holds them, and saving must go on
            self._lost += len(self._next) + len(self._rows) - self._stored
            self._next, self._rows, self._stored, self._small = [], [], 0, []
            _log.error("history.rows_lost", error=f"{type(error).__name__}: {error}")
        return None

    def missing(self, epoch: int, step: int) -> int:
        """How many steps before this state the history lacks now: lost, dropped or not written."""
        with self._lock:
            waiting = [(one.epoch, one.step) for one in self._waiting]
        unwritten = [*self._rows[self._stored :], *self._next]
        places = [*waiting, *((row["epoch"], row["step"]) for row in unwritten)]
        of_winners = sum(_steps(entry) for entry, _ in self._adopted)
        before = sum(place < (epoch, step) for place in places)
        return before + of_winners + self.dropped + self._lost

    def _put_all(self, *, whole: bool) -> None:
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
        while self._adopted:
            self._put_adopted(*self._adopted[0])
            del self._adopted[0]

    def _take(self) -> bool:
        """Take what waits over from the training's thread; False if what is held leaves no room: then
        what waits is bounded, and its oldest are dropped.
        """
        if len(self._rows) + len(self._next) >= MOST_ROWS:
            return False
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
            dropped, self._told = self.dropped - self._told, self.dropped
        if dropped:
            _log.warning("history.dropped", rows=dropped)
        self._next += map(stats_row, taken)
        return True

    def _close(self) -> None:
        """One chunk of all rows; then the small ones are needed no more."""
        key = self._put(self._rows)
        small, self._small, self._rows, self._stored = self._small, [], [], 0
        for one in small:
            if one != key:
                self._store.delete(one)

    def _put(self, rows: list[dict[str, Any]]) -> str:
        """Rows of one epoch and attempt as a chunk; returns its key."""
        epoch, attempt = _of(rows[0])
        key = keys.history(epoch, attempt, rows[0]["step"], rows[-1]["step"])
        try:
            self._store.put(key, history.encoded(rows), create=True)
        except AlreadyExists:
            _log.info("history.written_already", key=key)
        return key

    def _put_adopted(self, entry: LineageEntry, attempt: int) -> None:
        """The winner's rows, as the first of the epoch it opened. Raises StoreError."""
        key = keys.state_history(entry.state.key)
        try:
            rows = history.decoded(self._store.get(key)[0], key)
            if rows:
                self._put([{**row, "epoch": entry.epoch, "attempt": attempt} for row in rows])
        except (KeyMissing, ValueError) as error:
            self._lost += _steps(entry)
            _log.warning("history.adopted_unknown", epoch=entry.epoch, error=str(error))


def _steps(entry: LineageEntry) -> int:
    """How many steps the winner took from its base to the state that opens the epoch."""
    return entry.state.step - entry.base_step


def _leading(rows: list[dict[str, Any]], key: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows before the first of another epoch or attempt."""
    other = (n for n, row in enumerate(rows) if _of(row) != key)
    return rows[: next(other, len(rows))]


def _of(row: dict[str, Any]) -> tuple[int, int]:
    return row["epoch"], row["attempt"]
