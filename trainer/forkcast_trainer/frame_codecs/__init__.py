"""How a chunk of a tensor becomes the bytes of a frame. To add a codec: a file here, and a line in
CODECS; a reader that knows its name reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.planes import Planes
from forkcast_trainer.frame_codecs.raw import Raw


class FrameCodec(Protocol):
    """Both ways without loss, and without the interpreter's lock for what takes long."""

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes | memoryview:
        """The frame of a chunk of whole elements, ``itemsize`` bytes each; level: zstd's, from 1."""

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:
        """Fill the chunk. Allocates no more than a few times its size, whatever the frame claims.
        Raises ValueError if the frame is not exactly such a chunk's.
        """


CODECS: Mapping[str, type[FrameCodec]] = {
    "raw": Raw,
    "planes": Planes,
}
