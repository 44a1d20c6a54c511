"""A frame of one byte an element, in blocks of 256 float32: what both codecs of moments share.

The bits of a positive float, read as an integer, grow as its logarithm does, with straight lines
between powers of two. So their upper part, rounded, is a grid of whole numbers for every magnitude
there is. A block stores one number of the grid, its anchor, and of each element how far it is from
there. A frame::

    2 bytes a block   the anchor, little endian
    the part          a byte an element, see parts.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.parts import packed, packer, unpacked

BLOCK = 256
#: Of a float32's bits: those of infinity, which no number reaches.
INFINITE = 0x7F800000
Anchors: TypeAlias = NDArray[np.uint16]
Codes: TypeAlias = NDArray[np.uint8]


def grid(magnitudes: NDArray[np.uint32], below: int) -> NDArray[np.uint16]:
    """The number of the grid next to each; what would round to infinity gets the last."""
    rounded = magnitudes + np.uint32(1 << (below - 1))
    rounded >>= np.uint32(below)
    numbers: NDArray[np.uint16] = np.minimum(rounded, last(below)).astype(np.uint16)
    return numbers


def last(below: int) -> int:
    """The largest finite number of the grid."""
    return (INFINITE >> below) - 1


def spans(count: int) -> Iterator[tuple[slice, slice, int]]:
    """(blocks, elements, width) of the whole blocks of a chunk, then of the short one."""
    whole = count // BLOCK
    if whole:
        yield slice(0, whole), slice(0, whole * BLOCK), BLOCK
    if count % BLOCK:
        yield slice(whole, whole + 1), slice(whole * BLOCK, count), count % BLOCK


def joined(anchors: Anchors, codes: Codes, level: int) -> bytes:
    """The frame. level 0: its part is stored as it is."""
    part = packed(codes, packer(level)) if level else codes.data
    return b"".join((anchors.astype("<u2").data, part))


def parted(frame: memoryview, count: int) -> tuple[Anchors, Codes]:
    """Anchors and codes of so many elements; neither is writable. Raises ValueError."""
    length = 2 * -(-count // BLOCK)
    if len(frame) <= length:
        raise ValueError("the blocks' anchors are cut short")
    anchors = np.frombuffer(frame[:length], "<u2").astype(np.uint16)
    return anchors, unpacked(frame[length:], count)
