"""The tokens of a run with a single text, as most tests want them: the training part and the held-out part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forkcast_trainer.data import tokens
from forkcast_trainer.data.token_file import TokenSlice
from forkcast_trainer.data.tokens import Tokens
from forkcast_wire.manifest import Data

POEM = "Größe, 東京 and\nplain words.\n"


def prepare(data: Data, folder: Path, **more: Any) -> tuple[TokenSlice, TokenSlice]:
    """The first files' parts."""
    found = tokens.prepare(data, folder, **more)
    return found.train[0].parts[0], found.held[0].parts[0]


def alone(part: TokenSlice) -> list[Tokens]:
    """A run's training text that is this part."""
    return [Tokens("train", 1.0, [part])]


def bpe_folder(folder, size, special=("<|endoftext|>",)):
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([POEM * 10], vocab_size=size, special_tokens=list(special))
    bpe.save_model(str(folder))
    return folder
