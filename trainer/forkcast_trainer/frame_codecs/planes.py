"""Byte planes: the first bytes of all elements, then the second ones, ..., each through zstd.

A float's mantissa is noise, its exponent is not: neighbours in a tensor are of like size. Each
element is rotated left by one bit first, so that the sign leaves the exponent's byte to the exponent
alone. A frame::

    4 bytes a plane   the length of the plane's part, little endian, the lowest byte's plane first
    the parts         the plane itself if the part is as long as the plane, else one zstd frame
                      that states its content size
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.parts import STRIDE, packed, packer, unpacked


class Planes:
    """Of elements of 1, 2, 4 or 8 bytes."""

    LOSSLESS, FLOATS = True, False

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes:
        """See FrameCodec."""
        elements = chunk.view(f"<u{itemsize}")
        rows = [np.empty(len(elements), np.uint8) for _ in range(itemsize)]
        for at in range(0, len(elements), STRIDE):
            here = elements[at : at + STRIDE]
            rotated = (here << 1) | (here >> (8 * itemsize - 1))
            planes = rotated.view(np.uint8).reshape(-1, itemsize)
            for n, row in enumerate(rows):
                row[at : at + STRIDE] = planes[:, n]
        by = packer(level)
        parts = [packed(row, by) for row in rows]
        lengths = struct.pack(f"<{itemsize}I", *map(len, parts))
        return b"".join((lengths, *parts))

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:
        """See FrameCodec."""
        count, place = len(chunk) // itemsize, 4 * itemsize
        if len(frame) < place:
            raise ValueError("the planes' lengths are cut short")
        lengths = struct.unpack_from(f"<{itemsize}I", frame)
        if place + sum(lengths) != len(frame):
            raise ValueError("the planes' lengths are not the frame's")
        rows = []
        for length in lengths:
            rows.append(unpacked(frame[place : place + length], count))
            place += length
        elements = chunk.view(f"<u{itemsize}")
        spare = np.empty(min(STRIDE, count), elements.dtype)
        for at in range(0, count, STRIDE):
            here = slice(at, min(at + STRIDE, count))
            out, sign = elements[here], spare[: here.stop - at]
            planes = out.view(np.uint8).reshape(-1, itemsize)
            for n, row in enumerate(rows):
                planes[:, n] = row[here]
            np.left_shift(out, 8 * itemsize - 1, out=sign)
            out >>= 1
            out |= sign
