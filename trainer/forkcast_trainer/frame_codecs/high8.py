"""The highest bytes of float32 through zstd, all else as it is: the fastest way to a smaller state.

Of a float, sign and most of the exponent are in the highest byte, and of neighbours they are alike; the
other three bytes are noise. The highest bytes are taken out of the elements, and the places that they
leave in three quarters of a chunk take the other bytes of the fourth. So most of a chunk stays where it
is. The frame of n elements, m = n // 4::

    4 bytes         the length of the part, little endian
    the part        the highest bytes of the first 4 m elements (parts.py)
    12 m bytes      elements 0 to 3 m - 1, little endian; in the place of its highest byte, element
                    k m + i has byte k of element 3 m + i, the lowest being byte 0
    4 (n - 4 m)     the elements that are left over, as they are
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.parts import STRIDE, packed, packer, unpacked


class High8:
    """Of float32."""

    LOSSLESS, FLOATS = True, True

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> memoryview:  # noqa: ARG004
        """See FrameCodec."""
        elements = chunk.reshape(-1, 4)
        m = len(elements) // 4
        row, last = np.empty(4 * m, np.uint8), elements[3 * m : 4 * m]
        for at in range(0, 4 * m, STRIDE):
            row[at : at + STRIDE] = elements[at : min(at + STRIDE, 4 * m), 3]
        part = packed(row, packer(level))
        frame = np.empty(4 + len(part) + 4 * (len(elements) - m), np.uint8)
        frame[: 4 + len(part)] = np.frombuffer(struct.pack("<I", len(part)) + part, np.uint8)
        kept = frame[4 + len(part) :].reshape(-1, 4)
        for k in range(3):
            for at in range(k * m, (k + 1) * m, STRIDE):
                end = min(at + STRIDE, (k + 1) * m)
                kept[at:end] = elements[at:end]
                kept[at:end, 3] = last[at - k * m : end - k * m, k]
        kept[3 * m :] = elements[4 * m :]
        return frame.data

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:  # noqa: ARG004
        """See FrameCodec."""
        elements = chunk.reshape(-1, 4)
        m = len(elements) // 4
        raw = 4 * (len(elements) - m)
        if len(frame) < 4 or 4 + struct.unpack_from("<I", frame)[0] + raw != len(frame):
            raise ValueError("the highest bytes' length is not the frame's")
        row = unpacked(frame[4 : len(frame) - raw], 4 * m)
        kept = np.frombuffer(frame[len(frame) - raw :], np.uint8).reshape(-1, 4)
        last = elements[3 * m : 4 * m]
        for k in range(3):
            for at in range(k * m, (k + 1) * m, STRIDE):
                end = min(at + STRIDE, (k + 1) * m)
                elements[at:end] = kept[at:end]
                elements[at:end, 3] = row[at:end]
                last[at - k * m : end - k * m, k] = kept[at:end, 3]
        last[:, 3] = row[3 * m :]
        elements[4 * m :] = kept[3 * m :]
