"""The exponents of float32 through zstd, all else as it is: the fastest way to a smaller state.

A float's sign and mantissa are noise; its 8 bits of exponent are not. They are taken out of the
elements, and the place that they leave in three quarters of a chunk holds the fourth quarter's signs
and mantissas. So both ways are a few operations on whole words. The frame of n elements, m = n // 4::

    4 bytes         the length of the part, little endian
    the part        the exponents of the first 4 m elements, a byte each (parts.py)
    12 m bytes      3 m words, little endian: elements 0 to 3 m - 1, where word k m + i has in the
                    place of its exponent the bits 8 k to 8 k + 7 of the number that sign (bit 23) and
                    mantissa (the bits below) of element 3 m + i make
    4 (n - 4 m)     the elements that are left over, as they are
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.parts import packed, packer, unpacked

Words = NDArray[np.uint32]
_MANTISSA, _SIGN_BELOW = np.uint32(0x007FFFFF), np.uint32(0x00800000)
_KEPT, _SIGN = np.uint32(0x807FFFFF), 0x80000000
_BITS, _BYTE = 23, np.uint32(0xFF)
#: Elements at a time: what is at hand of them stays in the processor's cache.
_STRIDE = 1 << 15


class Exponents:
    """Of float32. A chunk of which no element has a sign is not coded: planes gain by the sign too."""

    LOSSLESS, FLOATS = True, True

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes | None:  # noqa: ARG004
        """See FrameCodec."""
        elements = chunk.view("<u4")
        if elements.max() < _SIGN:
            return None
        quarter = len(elements) // 4
        exponents = np.empty(4 * quarter, np.uint8)
        words = np.empty(3 * quarter, "<u4")
        for at in range(0, quarter, _STRIDE):
            here = slice(at, min(at + _STRIDE, quarter))
            for k in range(4):
                of = elements[k * quarter : (k + 1) * quarter][here]
                exponents[k * quarter : (k + 1) * quarter][here] = of >> _BITS
            last = elements[3 * quarter : 4 * quarter][here]
            moved = (last & _MANTISSA) | ((last >> 8) & _SIGN_BELOW)
            for k in range(3):
                out = words[k * quarter : (k + 1) * quarter][here]
                np.bitwise_and(elements[k * quarter : (k + 1) * quarter][here], _KEPT, out=out)
                out |= ((moved >> np.uint32(8 * k)) & _BYTE) << np.uint32(_BITS)
        part = packed(exponents, packer(level))
        rest = elements[4 * quarter :]
        return b"".join((struct.pack("<I", len(part)), part, words.data, rest.data))

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:  # noqa: ARG004
        """See FrameCodec."""
        elements = chunk.view("<u4")
        quarter = len(elements) // 4
        raw = 4 * (len(elements) - quarter)
        if len(frame) < 4 or 4 + struct.unpack_from("<I", frame)[0] + raw != len(frame):
            raise ValueError("the exponents' length is not the frame's")
        exponents = unpacked(frame[4 : len(frame) - raw], 4 * quarter)
        words = np.frombuffer(frame[len(frame) - raw :], "<u4")
        elements[4 * quarter :] = words[3 * quarter :]
        moved, spare = (np.empty(min(_STRIDE, quarter), np.uint32) for _ in range(2))
        for at in range(0, quarter, _STRIDE):
            here = slice(at, min(at + _STRIDE, quarter))
            size = here.stop - at
            _joined(elements, words, exponents, quarter, here, moved[:size], spare[:size])


def _joined(
    elements: Words,
    words: Words,
    exponents: NDArray[np.uint8],
    quarter: int,
    here: slice,
    moved: Words,
    spare: Words,
) -> None:
    """A stretch of each quarter, without memory of its own."""
    moved[:] = 0
    for k in range(3):
        own = slice(k * quarter, (k + 1) * quarter)
        out, word = elements[own][here], words[own][here]
        np.bitwise_and(word, _KEPT, out=out)
        np.bitwise_xor(word, out, out=spare)
        np.right_shift(spare, np.uint32(_BITS - 8 * k), out=spare)
        np.bitwise_or(moved, spare, out=moved)
        np.copyto(spare, exponents[own][here])
        np.left_shift(spare, np.uint32(_BITS), out=spare)
        np.bitwise_or(out, spare, out=out)
    out, own = elements[3 * quarter :][here], slice(3 * quarter, 4 * quarter)
    np.copyto(out, exponents[own][here])
    np.left_shift(out, np.uint32(_BITS), out=out)
    np.bitwise_and(moved, _MANTISSA, out=spare)
    np.bitwise_or(out, spare, out=out)
    np.bitwise_and(moved, _SIGN_BELOW, out=moved)
    np.left_shift(moved, np.uint32(8), out=moved)
    np.bitwise_or(out, moved, out=out)
