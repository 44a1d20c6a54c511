"""The durable record of every accepted step: written before it is acknowledged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import structlog

from forkcast.records import Index, StepStats
from forkcast_monitor.signals import SIGNALS
from forkcast_wire import crash
from forkcast_wire.files import flush_folder, replaced
from forkcast_wire.statistics import (
    COMPONENT,
    last_steps,
    read_tail,
    stats_row,
    tail_of,
    write_chunk,
)

_log = structlog.get_logger()
_CHUNK_ROWS = 1024
#: After a chunk that could not be written; each try reads the whole tail.
_RETRY_ROWS = 64


class LineFile:
    """JSON lines, appended whole or not at all. Each is with the operating system (and so safe from
    SIGKILL) when ``append`` returns, and on the disk after ``sync``. Open only while it is written:
    a run that rests holds no file descriptor. length: bytes so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._new = not path.exists()
        self.length = 0 if self._new else path.stat().st_size
        self.unsynced = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line. Raises OSError; then the file is as before."""
        line = json.dumps(row).encode() + b"\n"
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        written = 0
        try:
            written = self._file.write(line)
        finally:
            if written != len(line):
                os.ftruncate(self._file.fileno(), self.length)
        if written != len(line):
            raise OSError(f"{self._path}: short write, no space left?")
        self.length += len(line)
        self.unsynced = True

    def sync(self) -> None:
        """Wait until all lines are on the disk. Raises OSError."""
        if not self.unsynced:
            return
        assert self._file is not None
        os.fdatasync(self._file.fileno())
        if self._new:
            flush_folder(self._path.parent)
            self._new = False
        self.unsynced = False

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Hold exactly these rows, atomically and on the disk."""
        with replaced(self._path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        self._close()
        self._new = self.unsynced = False
        self.length = self._path.stat().st_size

    def rest(self) -> None:
        """Give the file descriptor back. Raises OSError."""
        self.sync()
        self._close()

    def abandon(self) -> None:
        """No more lines, and nothing of those there are matters."""
        self.unsynced = False
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class History:
    """Append-only; survives SIGKILL at any point. A row is in the tail's file before its ack; full
    tails become Parquet chunks, and rows that a crash left in both count once.

    last_steps: by (epoch, attempt), the last step that is in it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if (former := folder / "tail.jsonl").exists():  # where earlier versions kept it
            former.replace(tail_of(folder))
        tail = read_tail(folder)
        self._rows, self._chunk_at = len(tail), _CHUNK_ROWS
        self.last_steps = last_steps(folder)
        for row in tail:
            self._note(row)
        self._closed_bytes = _bytes_of_chunks(folder)
        self._file = LineFile(tail_of(folder))
        self._file.replace(tail)  # drops a line that a crash cut short

    def append(self, stats: StepStats, index: Index | None) -> None:
        """Add one row; without an index it was recorded but not judged. Raises OSError, and then
        the history is as before.
        """
        row = stats_row(stats)
        row["index"], row["z"] = (index.index, index.z) if index else (0.0, 0.0)
        for name in SIGNALS:
            row[COMPONENT + name] = index.components.get(name) if index else None
        crash.reach("before-append")
        self._file.append(row)
        crash.reach("after-append")
        self._rows += 1
        self._note(row)
        if self._rows >= self._chunk_at:
            try:
                self.rotate()
            except Exception as error:  # noqa: BLE001  the row is safe in the tail, and acknowledged
                self._chunk_at = self._rows + _RETRY_ROWS
                _log.warning("monitor.chunk_not_written", run=stats.run_uid, error=str(error))

    def rotate(self) -> None:
        """Close the tail into a Parquet chunk for each (epoch, attempt) in it."""
        if not self._rows:
            return
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in read_tail(self.folder):  # kept in memory they would be 2 MB a run
            groups.setdefault((row["epoch"], row["attempt"]), []).append(row)
        crash.reach("before-chunk")
        for rows in groups.values():
            write_chunk(rows, self.folder)
        crash.reach("after-chunk")
        self._closed_bytes = _bytes_of_chunks(self.folder)
        self._file.replace([])
        self._rows, self._chunk_at = 0, _CHUNK_ROWS

    def close(self) -> None:
        """Write the last chunk; rows that cannot become one stay in the tail, which is read too."""
        try:
            self.rotate()
        except Exception as error:  # noqa: BLE001  nothing is lost, and the other runs close too
            _log.warning("monitor.chunk_not_written", path=str(self.folder), error=str(error))
        finally:
            self._file.rest()

    def sync(self) -> None:
        """Wait until all rows are on the disk. Raises OSError."""
        self._file.sync()

    @property
    def unsynced(self) -> bool:
        """Whether a row may be lost with the machine."""
        return self._file.unsynced

    def rest(self) -> None:
        """Hold no file descriptor until the next row. Raises OSError."""
        self._file.rest()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.abandon()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._closed_bytes + self._file.length

    @property
    def rows_to_chunk(self) -> int:
        """Rows until the tail becomes a chunk."""
        return self._chunk_at - self._rows

    def _note(self, row: Mapping[str, Any]) -> None:
        key = (row["epoch"], row["attempt"])
        self.last_steps[key] = max(row["step"], self.last_steps.get(key, -1))


def _bytes_of_chunks(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))
