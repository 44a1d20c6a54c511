"""Small files on the local disk: replaced whole, and read with their name in every complaint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the path's place when the block ends: every reader sees the old bytes
    or the new ones, also after a crash of the machine. If the block raises, the old file stays.

    durable: False for what may be lost with the machine; then nothing waits for the disk.
    Raises OSError.
    """
    # hidden, so that readers of all files of the folder pass over it
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        flush_folder(path.parent)


def replace_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put these bytes in the path's place; see `replaced`. Raises OSError."""
    with replaced(path, durable=durable) as file:
        file.write(data)


def sweep(folder: Path) -> None:
    """Delete what processes of this machine that are dead now have left of `replaced`, here and in
    two levels of folders below.
    """
    for pattern in ("*.part", "*/*.part", "*/*/*.part"):
        for path in folder.glob(pattern):
            pid = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until the folder's names are on disk: a new name is when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
