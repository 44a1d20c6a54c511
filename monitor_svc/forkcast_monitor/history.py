"""The durable record of every accepted step: written before it is acknowledged."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from forkcast.records import Index, StatKey, StepStats
from forkcast_wire import crash
from forkcast_wire.statistics import TAIL, read_history, read_tail, write_chunk

_CHUNK_ROWS = 1024


class History:
    """Append-only; survives SIGKILL at any point. A row is in the tail's file before its ack; full
    tails become Parquet chunks, and rows that a crash left in both count once.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._tail = read_tail(folder)
        self.keys = {_key(row) for row in read_history(folder)}
        self._rewrite()
        self._file: TextIO = (folder / TAIL).open("a")

    def append(self, stats: StepStats, index: Index) -> None:
        """Add one row; it is with the operating system when this returns."""
        row = {**asdict(stats), "group_grad_norms": dict(stats.group_grad_norms)}
        row |= {"index": index.index, "z": index.z}
        row |= {f"u_{name}": index.components.get(name) for name in _SIGNALS}
        crash.reach("before-append")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        crash.reach("after-append")
        self._tail.append(row)
        self.keys.add(stats.key)
        if len(self._tail) >= _CHUNK_ROWS:
            self.rotate()

    def rotate(self) -> None:
        """Close the tail into a Parquet chunk for each (epoch, attempt) in it."""
        if not self._tail:
            return
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in self._tail:
            groups.setdefault((row["epoch"], row["attempt"]), []).append(row)
        for rows in groups.values():
            write_chunk(rows, self.folder)
        crash.reach("after-chunk")
        self._tail = []
        self._file.close()
        self._rewrite()
        self._file = (self.folder / TAIL).open("a")

    def close(self) -> None:
        """Write the last chunk."""
        self.rotate()
        self._file.close()

    def _rewrite(self) -> None:
        """Make the tail's file hold exactly the tail: drops a line that a crash cut short."""
        partial = self.folder / (TAIL + ".part")
        with partial.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self._tail)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / TAIL)


_SIGNALS = ("volatility", "entropy", "disagreement")


def _key(row: dict[str, Any]) -> StatKey:
    return StatKey(row["run_uid"], row["epoch"], row["attempt"], row["rank"], row["step"])
