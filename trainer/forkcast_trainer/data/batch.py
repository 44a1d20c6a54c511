"""Pieces of text to the bytes of a token file, and how both travel between two processes.

A frame is the number of its parts, their lengths and the parts; all numbers are eight bytes, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final

import numpy as np

from forkcast_trainer.data.encoder import Encode

_NUMBER: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some pieces in their order. goes_on, ends: of each, whether it is not the first of its document,
    and whether it is the last.
    """

    texts: list[str]
    goes_on: list[bool]
    ends: list[bool]


def encode(batch: Batch, encoder: Encode, end_of_text: int, dtype: str) -> bytes:
    """The ids of a batch as they are in a token file: ``end_of_text`` behind each document."""
    end, found = np.array([end_of_text], dtype=dtype), []
    for text, goes_on, ends in zip(batch.texts, batch.goes_on, batch.ends, strict=True):
        found.append(encoder(text, goes_on=goes_on).astype(dtype))
        if ends:
            found.append(end)
    return np.concatenate(found).tobytes() if found else b""


def pack(batch: Batch) -> list[bytes]:
    """The parts of a frame."""
    return [bytes(batch.goes_on), bytes(batch.ends), *(text.encode() for text in batch.texts)]


def unpack(parts: Sequence[bytes]) -> Batch:
    """The inverse of `pack`."""
    goes_on, ends, *texts = parts
    return Batch([text.decode() for text in texts], [*map(bool, goes_on)], [*map(bool, ends)])


def write_frame(file: IO[bytes], parts: Sequence[bytes]) -> None:
    """Raises OSError."""
    file.write(_NUMBER.pack(len(parts)) + b"".join(_NUMBER.pack(len(part)) for part in parts))
    for part in parts:
        file.write(part)
    file.flush()


def read_frame(file: IO[bytes]) -> list[bytes]:
    """Raises EOFError where the other side has ended."""
    count = _number(file)
    sizes = [_number(file) for _ in range(count)]
    return [_exactly(file, size) for size in sizes]


def _number(file: IO[bytes]) -> int:
    (number,) = _NUMBER.unpack(_exactly(file, _NUMBER.size))
    return int(number)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data
