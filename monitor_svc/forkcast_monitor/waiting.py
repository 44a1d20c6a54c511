"""Records that wait for a late one: durable, since they are acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import tail
from forkcast_wire.appended import AppendedFile
from forkcast_wire.statistics import read_lines, recorded, sound


class WaitingFile:
    """The waiting records of one run in a file of a history tail's format; empty most of the time.
    found: those that a process before left. file: where they are.
    """

    def __init__(self, folder: Path) -> None:
        path, former = folder / "waiting.tail", folder / "waiting.jsonl"
        frames, whole = tail.decoded(path.read_bytes() if path.exists() else b"")
        self.found = [one for frame in frames for one in frame.stats]
        self.file = AppendedFile(path)
        if former.exists():  # what an earlier version wrote
            rows = [recorded(row) for row in read_lines(former) if sound(row)]
            self.found += [row.stats for row in rows if row is not None]
        if former.exists() or not whole:
            self.replace(self.found)
            former.unlink(missing_ok=True)

    def append(self, record: pb.StepStats) -> None:
        """Keep one. Raises OSError; then the file is as before."""
        self.file.append(_bytes_of([record]))

    def replace(self, records: Sequence[pb.StepStats]) -> None:
        """Hold exactly these, atomically and on the disk. Raises OSError."""
        self.file.replace(_bytes_of(records))

    def clear(self) -> None:
        """Hold none. Raises OSError."""
        if self.file.length:
            self.file.replace(b"")


def _bytes_of(records: Sequence[pb.StepStats]) -> bytes:
    return tail.encoded([tail.Row(one) for one in records], ()) if records else b""
