"""First moments in 8 bits: a sign in the highest bit, and a code from 0 to 127.

The grid (blocks.py) has 8 numbers a power of two. A block's anchor lies 127 below its largest
magnitude, or is 0 if that is smaller; code c from 1 on is the anchor + c. What is not above the
anchor, almost 16 powers of two below the largest, becomes 0. So no magnitude grows by more than a
sixteenth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs import blocks

_BELOW = 20
_CODES = 127
_LAST_ANCHOR = blocks.last(_BELOW) - _CODES
_MAGNITUDE, _SIGN = 0x7FFFFFFF, 0x80


class First8:
    """Of float32 that are neither infinite nor NaN; a chunk with such is not coded."""

    LOSSLESS, FLOATS = False, True

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes | None:  # noqa: ARG004
        """See FrameCodec."""
        bits = chunk.view("<u4")
        magnitudes = bits & np.uint32(_MAGNITUDE)
        if magnitudes.max() >= blocks.INFINITE:
            return None
        grid = blocks.grid(magnitudes, _BELOW)
        anchors = np.empty(-(-len(bits) // blocks.BLOCK), np.uint16)
        for rows, span, width in blocks.spans(len(bits)):
            here = grid[span].reshape(-1, width)
            high = here.max(axis=1)
            anchors[rows] = np.maximum(high, _CODES) - _CODES
            np.maximum(here, anchors[rows, None], out=here)
            here -= anchors[rows, None]
        codes = grid.astype(np.uint8)
        signs = (bits >> 24).astype(np.uint8)
        signs &= _SIGN
        if codes.min() == 0:
            signs[codes == 0] = 0
        codes |= signs
        return blocks.joined(anchors, codes, level)

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:  # noqa: ARG004
        """See FrameCodec."""
        bits = chunk.view("<u4")
        anchors, codes = blocks.parted(frame, len(bits))
        if anchors.max() > _LAST_ANCHOR:
            raise ValueError("a block's anchor is none")
        magnitudes = codes & np.uint8(_CODES)
        for rows, span, width in blocks.spans(len(bits)):
            here = magnitudes[span].reshape(-1, width)
            np.add(here, anchors[rows, None], out=bits[span].reshape(-1, width))
        if magnitudes.min() == 0:
            bits[magnitudes == 0] = 0
        bits <<= _BELOW
        codes = codes & np.uint8(_SIGN)
        bits |= codes.astype(np.uint32) << np.uint32(24)
