"""A file that is only added to, whole pieces at a time."""

from __future__ import annotations

import errno
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
        file = self._open()
        try:
            written = file.write(piece)
        except OSError as error:
            raise self._undone(file, error.errno) from None
        if written != len(piece):
            raise self._undone(file, errno.ENOSPC)
        self.length += written
        self.unsynced = True

    def _undone(self, file: FileIO, number: int | None) -> OSError:
        """The error of an append, which is taken back."""
        try:
            os.ftruncate(file.fileno(), self.length)
        except OSError:  # a device, or a disk that fails: a later error must not take more back
            self.length = os.fstat(file.fileno()).st_size
        return OSError(number, os.strerror(number or 0), str(self._path))

    def create(self) -> None:
        """Make the file and its folder where they are missing. Raises OSError if it cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

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
        self.close()
        self._named, self.unsynced = True, False
        self.length = len(content)

    def clear(self) -> None:
        """Hold nothing; a crash of the machine may bring back what was there. Raises OSError."""
        if self.length:
            os.ftruncate(self._open().fileno(), 0)
            self.length, self.unsynced = 0, False

    def rest(self) -> None:
        """Give the file descriptor back when all pieces are on the disk. Raises OSError."""
        self.sync()
        self.close()

    def abandon(self) -> None:
        """No more pieces, and nothing of those there are matters."""
        self.unsynced = False
        self.close()

    def close(self) -> None:
        """Give the file descriptor back at once; the next piece opens the file again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        return self._file
