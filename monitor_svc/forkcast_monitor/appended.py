"""A file that is only added to, whole pieces at a time."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from forkcast_wire.files import flush_folder, replaced


class AppendedFile:
    """Pieces of bytes, each added whole or not at all. A piece is with the operating system (and so
    safe from SIGKILL) when ``append`` returns, and on the disk after ``sync``. Open only while it is
    written: a run that rests holds no file descriptor. length: bytes so far. unsynced: whether some
    of them may be lost with the machine, what a process before left included.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._named = False  # whether its name is on the disk, as far as this process knows
        self.length = path.stat().st_size if path.exists() else 0
        self.unsynced = self.length > 0

    def append(self, piece: bytes) -> None:
        """Add a piece. Raises OSError; then the file is as before."""
        file, written = self._open(), 0
        try:
            written = file.write(piece)
        finally:
            if written != len(piece):
                os.ftruncate(file.fileno(), self.length)
        if written != len(piece):
            raise OSError(f"{self._path}: short write, no space left?")
        self.length += len(piece)
        self.unsynced = True

    def sync(self) -> None:
        """Wait until all pieces are on the disk. Raises OSError."""
        if not self.unsynced:
            return
        os.fdatasync(self._open().fileno())
        if not self._named:
            flush_folder(self._path.parent)
            self._named = True
        self.unsynced = False

    def replace(self, content: bytes) -> None:
        """Hold exactly this, atomically and on the disk. Raises OSError."""
        with replaced(self._path) as file:
            file.write(content)
        self._close()
        self._named, self.unsynced = True, False
        self.length = len(content)

    def clear(self) -> None:
        """Hold nothing; a crash of the machine may bring back what was there. Raises OSError."""
        if self.length:
            os.ftruncate(self._open().fileno(), 0)
            self.length, self.unsynced = 0, False

    def rest(self) -> None:
        """Give the file descriptor back. Raises OSError."""
        self.sync()
        self._close()

    def abandon(self) -> None:
        """No more pieces, and nothing of those there are matters."""
        self.unsynced = False
        self._close()

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        return self._file

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
