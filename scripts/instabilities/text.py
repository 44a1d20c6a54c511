"""The text that the runs train on."""

from __future__ import annotations

import argparse
import contextlib
import random

import numpy as np

from instabilities.model import VOCABULARY


def prepare(options: argparse.Namespace) -> None:
    """GPT-2 tokens of text files (.py, .txt), shuffled by file, at most 25 MB, as uint16."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(str(options.bpe / "vocab.json"), str(options.bpe / "merges.txt"))
    files = [
        p for top in options.text for p in ([top] if top.is_file() else sorted(top.rglob("*.py")))
    ]
    files = [p for p in files if "site-packages" not in p.parts and "encodings" not in p.parts]
    random.Random(0).shuffle(files)
    pieces, total = [], 0
    for path in files:
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_text("utf-8")
            for start in range(0, len(text), 200_000):
                ids = bpe.encode(text[start : start + 200_000]).ids
                pieces.append(np.array([*ids, VOCABULARY - 1], dtype=np.uint16))
                total += len(ids) + 1
    random.Random(1).shuffle(pieces)
    tokens = np.concatenate(pieces)[:12_500_000]
    options.to.mkdir(parents=True, exist_ok=True)
    tokens.tofile(options.to / "tokens.bin")
    print(f"{total} tokens, {len(tokens)} kept, {len(np.unique(tokens))} ids")
