"""Token files of this machine: ids that every process maps, and the card that says what they are."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from forkcast_wire import beats
from forkcast_wire.documents import DocumentError, load

#: Of the ids of a file. Our own are uint16, or uint32 where the vocabulary is too large for it.
IdType = Literal["uint8", "uint16", "uint32", "int32", "int64"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What stands beside a token file: ``count`` ids, documents separated by ``end_of_text`` (None: not
    known). sha256: of
    the ids as they are in the file.
    """

    dtype: IdType
    count: NonNegativeInt
    vocabulary_size: PositiveInt
    end_of_text: NonNegativeInt | None
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the token file."""
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class TokenFile(Card):
    """A token file of this machine. name: what it is published under."""

    path: Path
    name: str

    @property
    def ours(self) -> bool:
        """Whether a run has made it; else it is the user's own, and its bytes are not published."""
        return self.path.stem == self.name

    @cached_property
    def array(self) -> NDArray[np.generic]:
        """[count] ids, memory-mapped, read only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def part(self, first: int, last: int) -> TokenSlice:
        """The ids in [first, last)."""
        return TokenSlice(self, first, last)


def card_of(file: TokenFile) -> Card:
    """Its facts, without its place."""
    return Card(**{one.name: getattr(file, one.name) for one in fields(Card)})


@dataclass(frozen=True)
class TokenSlice:
    """A contiguous part of a token file."""

    file: TokenFile
    first: int
    last: int

    @property
    def array(self) -> NDArray[np.generic]:
        """[last - first] ids."""
        return self.file.array[self.first : self.last]

    @property
    def count(self) -> int:
        """Number of ids."""
        return self.last - self.first


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets the next one in when it dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with beats.during(beats.Phase.MEET):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def kept(folder: Path, name: str) -> TokenFile | None:
    """The token file of this name that stands in the folder, unless a crash of the machine cut it short."""
    path = folder / f"{name}.bin"
    try:
        card = load(Card, (folder / f"{name}.json").read_bytes())
        whole = path.stat().st_size == card.size
    except (OSError, DocumentError):
        return None
    return TokenFile(path=path, name=name, **asdict(card)) if whole else None
