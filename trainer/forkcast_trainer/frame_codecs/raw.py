"""The bytes themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Raw:
    """As fast as memory; what does not get smaller is stored so, whatever the codec asked for."""

    LOSSLESS, FLOATS = True, False

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> memoryview:  # noqa: ARG004
        """See FrameCodec."""
        return chunk.data

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:  # noqa: ARG004
        """See FrameCodec."""
        if len(frame) != len(chunk):
            raise ValueError(f"{len(frame)} bytes for a chunk of {len(chunk)}")
        chunk[:] = np.frombuffer(frame, np.uint8)
