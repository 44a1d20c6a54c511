"""A file to which records are appended, whole or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


class AppendedFile:
    """Each record is with the operating system when ``append`` returns."""

    def __init__(self, path: Path) -> None:
        """Makes the file and its folder. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._length = os.fstat(self._file.fileno()).st_size

    def append(self, record: bytes) -> None:
        """Raises OSError; then the file is as before."""
        try:
            written = self._file.write(record)
        except OSError as error:
            raise self._undone(error.errno) from None
        if written != len(record):
            raise self._undone(errno.ENOSPC)
        self._length += written

    def _undone(self, number: int | None) -> OSError:
        with suppress(OSError):  # a device cannot be shortened
            os.ftruncate(self._file.fileno(), self._length)
        return OSError(number, os.strerror(number or 0), str(self._path))

    def close(self) -> None:
        """Nothing is appended afterwards."""
        self._file.close()
