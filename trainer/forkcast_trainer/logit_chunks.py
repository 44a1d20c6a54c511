"""How many rows of logits exist at a time. Imports no torch: `forkcast plan` counts with it."""

from __future__ import annotations

from typing import Final

#: The head's matrix product falls back to a slow kernel if its columns are no multiple of this.
COLUMNS: Final = 64
#: Logits of one chunk, elements. On a GPU a chunk's product must be worth a pass over the head's
#: gradient, which every chunk adds to; on a CPU memory is what is short.
_MOST: Final = {"cuda": 1 << 27}
_MOST_ELSEWHERE: Final = 1 << 25
_ROWS: Final = 128


def padded(vocabulary: int) -> int:
    """Columns of the logits inside."""
    return -(-vocabulary // COLUMNS) * COLUMNS


def chunk_rows(rows: int, vocabulary: int, device: str) -> int:
    """Rows of a chunk, so that all are about equal: a multiple of 128, or all there are."""
    most = max(_MOST.get(device, _MOST_ELSEWHERE) // padded(vocabulary), _ROWS)
    pieces = max(-(-rows // most), 1)
    return max(min(-(-rows // pieces // _ROWS) * _ROWS, rows), 1)
