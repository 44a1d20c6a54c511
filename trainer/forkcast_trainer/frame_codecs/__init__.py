"""How a chunk of a tensor becomes the bytes of a frame. To add a codec: a file here, and a line in
CODECS; a reader that knows its name reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.frame_codecs.first8 import First8
from forkcast_trainer.frame_codecs.high8 import High8
from forkcast_trainer.frame_codecs.planes import Planes
from forkcast_trainer.frame_codecs.raw import Raw
from forkcast_trainer.frame_codecs.second8 import Second8


class FrameCodec(Protocol):
    """Both ways without the interpreter's lock for what takes long. LOSSLESS: decoding gives the
    encoded bits. FLOATS: it is of float32 alone; otherwise of any dtype.
    """

    LOSSLESS: bool
    FLOATS: bool

    @staticmethod
    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> bytes | memoryview | None:
        """The frame of a chunk of whole elements, ``itemsize`` bytes each; level: zstd's, 0 for none.
        None: it holds something that this codec is not for.
        """

    @staticmethod
    def decode(frame: memoryview, chunk: NDArray[np.uint8], itemsize: int) -> None:
        """Fill the chunk. Allocates no more than a few times its size, whatever the frame claims.
        Raises ValueError if the frame is not exactly such a chunk's.
        """


CODECS: Mapping[str, type[FrameCodec]] = {
    "raw": Raw,
    "planes": Planes,
    "high8": High8,
    "first8": First8,
    "second8": Second8,
}
