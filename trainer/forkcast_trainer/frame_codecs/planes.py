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
import zstandard
from numpy.typing import NDArray

#: A plane of which so many bytes from its middle do not get smaller is noise.
_SAMPLE = 1 << 14
_WORTH = 0.97


class Planes:
    """Of elements of 1, 2, 4 or 8 bytes."""

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes:
        """See FrameCodec."""
        elements = chunk.view(f"<u{itemsize}")
        rotated = (elements << 1) | (elements >> (8 * itemsize - 1))
        planes = rotated.view(np.uint8).reshape(-1, itemsize)
        packer = _packer(level)
        parts = [_packed(np.ascontiguousarray(planes[:, n]), packer) for n in range(itemsize)]
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
            planes[:, n] = _unpacked(frame[place : place + length], count)
            place += length
        elements = chunk.view(f"<u{itemsize}")
        sign = elements << (8 * itemsize - 1)
        elements >>= 1
        elements |= sign


def _packer(level: int) -> zstandard.ZstdCompressor:
    """Exponents are skewed, but do not repeat: at level 1, hardly a search for matches makes them
    smaller, and in a third of the time.
    """
    sought = {"min_match": 7, "hash_log": 6} if level == 1 else {}
    rules = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=False, **sought)
    return zstandard.ZstdCompressor(compression_params=rules)


def _packed(plane: NDArray[np.uint8], packer: zstandard.ZstdCompressor) -> bytes | memoryview:
    """A part that is shorter than the plane, or the plane."""
    if len(plane) > 4 * _SAMPLE:
        middle = len(plane) // 2
        sample = packer.compress(plane[middle : middle + _SAMPLE].data)
        if len(sample) > _WORTH * _SAMPLE:
            return plane.data
    packed: bytes = packer.compress(plane.data)
    return packed if len(packed) < len(plane) else plane.data


def _unpacked(part: memoryview, count: int) -> NDArray[np.uint8]:
    if len(part) == count:
        return np.frombuffer(part, np.uint8)
    try:
        # a part that states another size is not unpacked at all
        if zstandard.frame_content_size(part) != count:
            raise ValueError("a plane's size is not the chunk's")
        plane = zstandard.ZstdDecompressor().decompress(
            part, max_output_size=count, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(plane) != count:
        raise ValueError("a plane's size is not the chunk's")
    return np.frombuffer(plane, np.uint8)
