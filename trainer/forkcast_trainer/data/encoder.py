"""Text to ids: the same ids whether a document comes whole or in the pieces of `decode.cut`.

Light to import: each tokenising process does.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

_SEAM: Final = ("the end of a Piece", " and the next")


class Encode(Protocol):
    """What makes ids of text."""

    def __call__(self, text: str, *, goes_on: bool = False) -> NDArray[np.integer]:
        """The ids of a piece of text, without an end-of-text id; the text of a special token is plain
        text. goes_on: whether the piece is not the first of its document.
        """


def restored(described: str) -> Encode:
    """``encode`` of the tokenizer that was described so."""
    from tokenizers import Tokenizer as Fast

    return encoder_of(Fast.from_str(described))


def encoder_of(fast: Any) -> Encode:
    """Truncation, padding and special tokens are none of the text's.

    A tokenizer that puts a space before every text it is given would put it before each piece too: for
    it a piece that goes on gives up its own, if that makes the seam vanish.
    """
    # a process that has used the library's threads must not fork, and a rollout server does
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True

    def ids(text: str) -> list[int]:
        # without the offsets of each token, which nobody reads
        return list(fast.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    before, after = _SEAM
    whole = ids(before + after)
    twice = ids(before) + ids(after) != whole and ids(before) + ids(after[1:]) == whole

    def encode(text: str, *, goes_on: bool = False) -> NDArray[np.integer]:
        if goes_on and twice:
            text = text.removeprefix(" ")
        return np.asarray(ids(text), dtype=np.int64)

    return encode
