"""A row of bytes as a part of a frame: one zstd frame of it, or the bytes themselves if they are noise."""

from __future__ import annotations

import numpy as np
import zstandard
from numpy.typing import NDArray

#: Elements at a time: what is at hand of them stays in the processor's cache.
STRIDE = 1 << 15
#: A row of which so many bytes from its middle do not get smaller is noise.
_SAMPLE = 1 << 14
_WORTH = 0.97


def packer(level: int) -> zstandard.ZstdCompressor:
    """Exponents and codes are skewed, but do not repeat: at level 1, hardly a search for matches makes
    them smaller, and in a third of the time.
    """
    sought = {"min_match": 7, "hash_log": 6} if level == 1 else {}
    rules = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=False, **sought)
    return zstandard.ZstdCompressor(compression_params=rules)


def packed(row: NDArray[np.uint8], by: zstandard.ZstdCompressor) -> bytes | memoryview:
    """A part that is shorter than the row, or the row."""
    if len(row) > 4 * _SAMPLE:
        middle = len(row) // 2
        sample = by.compress(row[middle : middle + _SAMPLE].data)
        if len(sample) > _WORTH * _SAMPLE:
            return row.data
    part: bytes = by.compress(row.data)
    return part if len(part) < len(row) else row.data


def unpacked(part: memoryview, count: int) -> NDArray[np.uint8]:
    """The row of ``count`` bytes; not writable. Raises ValueError if the part is not exactly that; no
    more memory is taken than the row has.
    """
    if len(part) == count:
        return np.frombuffer(part, np.uint8)
    try:
        # a part that states another size is not unpacked at all
        if zstandard.frame_content_size(part) != count:
            raise ValueError("a part's size is not the chunk's")
        row = zstandard.ZstdDecompressor().decompress(
            part, max_output_size=count, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(row) != count:
        raise ValueError("a part's size is not the chunk's")
    return np.frombuffer(row, np.uint8)
