"""Second moments in 8 bits. A code that is linear in the value would make 0 of a block's small ones; the
next update, which divides by their roots, would blow up.

The grid (blocks.py) has 16 numbers a power of two. A block's anchor is its smallest, and a code counts
steps up from there, from 1: 254 codes span almost 16 powers of two. A block that spans more has steps
twice as wide, or four times, ...: how often they were doubled stands in the anchor's upper 4 bits.
Code 0 is the number 0 and nothing else: what was not 0 does not become 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs import blocks

_BELOW = 19
_LAST = blocks.last(_BELOW)
#: From the anchor. An odd number: what was decoded then asks for steps as wide as before, and is
#: coded with the same bytes again.
_STEPS, _DOUBLED = 253, 5


class Second8:
    """Of float32 that are neither negative nor infinite nor NaN; a chunk with such is not coded."""

    LOSSLESS, FLOATS = False, True

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes | None:  # noqa: ARG004
        """See FrameCodec."""
        bits = chunk.view("<u4")
        if bits.max() >= blocks.INFINITE:  # so is whatever has a sign
            return None
        grid = np.maximum(blocks.grid(bits, _BELOW), 1)
        zero = bits == 0 if bits.min() == 0 else None
        if zero is not None:
            grid[zero] = 0
        anchors = np.empty(-(-len(bits) // blocks.BLOCK), np.uint16)
        for rows, span, width in blocks.spans(len(bits)):
            here = grid[span].reshape(-1, width)
            low = (here - 1).min(
                axis=1
            ) + 1  # a 0 becomes the largest; in a block of zeros, 0 again
            spread, doubled = here.max(axis=1) - low, np.zeros_like(low)
            for n in range(_DOUBLED):
                doubled += _steps(spread, np.uint16(n)) > _STEPS
            here -= low[:, None]
            if doubled.any():
                here[:] = _steps(here, doubled[:, None])
            here += 1
            anchors[rows] = low | (doubled << 12)
        codes = grid.astype(np.uint8)
        if zero is not None:
            codes[zero] = 0
        return blocks.joined(anchors, codes, level)

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:  # noqa: ARG004
        """See FrameCodec."""
        bits = chunk.view("<u4")
        anchors, codes = blocks.parted(frame, len(bits))
        zero = codes == 0 if codes.min() == 0 else None
        for rows, span, width in blocks.spans(len(bits)):
            out, here = bits[span].reshape(-1, width), codes[span].reshape(-1, width)
            low, doubled = (anchors[rows] & 0xFFF).astype(np.uint32), anchors[rows] >> 12
            if low.max() > _LAST or doubled.max() > _DOUBLED:
                raise ValueError("a block's anchor is none")
            if low.min() == 0 and here[low == 0].any():
                raise ValueError("a block's anchor would make 0 of a number")
            if doubled.any():
                np.subtract(
                    here, 1, out=out, dtype=np.uint32
                )  # that of a 0 wraps, and is put right
                out <<= doubled[:, None]
                out += low[:, None]
            else:
                np.add(here, (low - 1)[:, None], out=out)
            np.minimum(out, _LAST, out=out)
        bits <<= _BELOW
        if zero is not None:
            bits[zero] = 0


def _steps(
    spread: NDArray[np.uint16], doubled: NDArray[np.uint16] | np.uint16
) -> NDArray[np.uint16]:
    """How many steps of 2**doubled a distance is, rounded."""
    half = np.uint16(1) << doubled >> np.uint16(1)
    steps: NDArray[np.uint16] = (spread + half) >> doubled
    return steps
