"""The durable record of every accepted step: written before it is acknowledged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path

import structlog

from forkcast_monitor.signals import SIGNALS
from forkcast_wire import crash, tail
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.appended import AppendedFile
from forkcast_wire.statistics import (
    former_tails,
    last_steps,
    read_former_tails,
    recorded,
    tail_columns,
    tail_of,
    write_columns,
)
from forkcast_wire.tail import Row

_log = structlog.get_logger()
_CHUNK_ROWS = 1024
#: After a chunk that could not be written; each try reads the whole tail.
_RETRY_ROWS = 64


class History:
    """Append-only; survives SIGKILL at any point. A row is in the tail's file before its ack; full
    tails become Parquet chunks, and rows that a crash left in both count once.

    last_steps: by (epoch, attempt), the last step that is in it. file: the tail's.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = tail_of(folder)
        frames, whole = tail.decoded(path.read_bytes() if path.exists() else b"")
        self._rows, self._chunk_at = 0, _CHUNK_ROWS
        self.last_steps = last_steps(folder)
        for frame in frames:
            self._note(frame.stats)
        self._closed_bytes = _bytes_of_chunks(folder)
        self.file = AppendedFile(path)
        if not whole:  # drops what a crash cut short
            self.file.replace(b"".join(map(tail.framed, frames)))
        self._take_over()

    def _take_over(self) -> None:
        """Rows of a tail that an earlier version wrote, into this one's."""
        former = former_tails(self.folder)
        if rows := [row for one in read_former_tails(self.folder) if (row := recorded(one))]:
            self.file.append(tail.encoded(rows, SIGNALS))
            self.file.sync()
            self._note([row.stats for row in rows])
        for path in former:
            path.unlink()

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, at once. Raises OSError, and then the history is as before."""
        crash.reach("before-append")
        self.file.append(tail.encoded(rows, SIGNALS))
        crash.reach("after-append")
        self._note([row.stats for row in rows])
        if self._rows >= self._chunk_at:
            try:
                self.rotate()
            except Exception as error:  # noqa: BLE001  the rows are safe in the tail
                self._chunk_at = self._rows + _RETRY_ROWS
                run = rows[0].stats.run_uid
                _log.warning("monitor.chunk_not_written", run=run, error=str(error))

    def rotate(self) -> None:
        """Close the tail into a Parquet chunk for each (epoch, attempt) in it."""
        if not self._rows:
            return
        # read again: kept in memory they would be 200 kB a run
        columns = tail_columns(self.folder)
        keys = list(zip(columns["epoch"], columns["attempt"], strict=True))
        crash.reach("before-chunk")
        for key in dict.fromkeys(keys):
            chosen = [one == key for one in keys]
            write_columns({n: list(compress(c, chosen)) for n, c in columns.items()}, self.folder)
        crash.reach("after-chunk")
        self._closed_bytes = _bytes_of_chunks(self.folder)
        self.file.clear()
        self._rows, self._chunk_at = 0, _CHUNK_ROWS

    def close(self) -> None:
        """Write the last chunk; rows that cannot become one stay in the tail, which is read too."""
        try:
            self.rotate()
        except Exception as error:  # noqa: BLE001  nothing is lost, and the other runs close too
            _log.warning("monitor.chunk_not_written", path=str(self.folder), error=str(error))
        finally:
            self.file.rest()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._closed_bytes + self.file.length

    @property
    def rows_to_chunk(self) -> int:
        """Rows until the tail becomes a chunk."""
        return self._chunk_at - self._rows

    def _note(self, records: Iterable[pb.StepStats]) -> None:
        for one in records:
            key = (one.epoch, one.attempt)
            self.last_steps[key] = max(one.step, self.last_steps.get(key, -1))
            self._rows += 1


def _bytes_of_chunks(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))
