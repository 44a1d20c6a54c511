"""TFRecords, as TensorBoard's event files are made of, without TensorFlow.

A record is its length (u64), the masked CRC-32C of the length, its bytes, and the masked CRC-32C of
those, little endian. CRCs are masked so that one of data that holds CRCs is no weaker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

_HEAD: Final = struct.Struct("<QI")
_CRC: Final = struct.Struct("<I")
_LONGEST: Final = 1 << 28
_POLYNOMIAL: Final = 0x82F63B78


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        rows.append(crc)
    return tuple(rows)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """The checksum, not masked."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class RecordError(ValueError):
    """A record is damaged; number: its place, from 1."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"record {number} is damaged: its checksum is wrong")


class CutShortError(RecordError):
    """The last record is not whole, as a writer that is still running leaves it."""


def record(data: bytes) -> bytes:
    """The bytes of a record."""
    head = struct.pack("<Q", len(data))
    return b"".join((head, _CRC.pack(masked(head)), data, _CRC.pack(masked(data))))


def begins(data: bytes) -> bool:
    """Whether a file that begins so can be one of records."""
    return len(data) >= _HEAD.size and _length(data) is not None


def records(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The data of each record. read: gives the next bytes, so many, and fewer only at the end. Raises
    RecordError at the first that is damaged.
    """
    number = 0
    while head := read(_HEAD.size):
        number += 1
        if len(head) < _HEAD.size:
            raise CutShortError(number)
        length = _length(head)
        if length is None:
            raise RecordError(number)
        data, end = read(length), read(_CRC.size)
        if len(end) < _CRC.size:
            raise CutShortError(number)
        if _CRC.unpack(end)[0] != masked(data):
            raise RecordError(number)
        yield data


def _length(head: bytes) -> int | None:
    """The length that a record begins with; None if it is damaged."""
    length, crc = map(int, _HEAD.unpack_from(head))
    return length if length <= _LONGEST and masked(head[:8]) == crc else None


def masked(data: bytes) -> int:
    """The checksum as it is stored."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
