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

from forkcast_trainer.frame_codecs.parts import packed, packer, unpacked


class Planes:
    """Of elements of 1, 2, 4 or 8 bytes."""

    LOSSLESS, FLOATS = True, False

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes:
        """See FrameCodec."""
        elements = chunk.view(f"<u{itemsize}")
        rotated = (elements << 1) | (elements >> (8 * itemsize - 1))
        planes = rotated.view(np.uint8).reshape(-1, itemsize)
        by = packer(level)
        parts = [packed(np.ascontiguousarray(planes[:, n]), by) for n in range(itemsize)]
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
        planes = chunk.reshape(count, itemsize)
        for n, length in enumerate(lengths):
            planes[:, n] = unpacked(frame[place : place + length], count)
            place += length
        elements = chunk.view(f"<u{itemsize}")
        sign = elements << (8 * itemsize - 1)
        elements >>= 1
        elements |= sign
