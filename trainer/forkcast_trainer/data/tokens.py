"""Tokenise once, into a memory-mapped file that every process of the run shares."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from forkcast_trainer.data.text import documents, source_files
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Data, TextSource

_END_OF_TEXT_BYTE = 256
_FLUSH_TOKENS = 1 << 20


@dataclass(frozen=True)
class TokenFile:
    """``count`` token ids, uint16 or uint32, documents separated by ``end_of_text``."""

    path: Path
    dtype: str
    count: int
    vocabulary_size: int
    end_of_text: int

    @cached_property
    def array(self) -> NDArray[np.generic]:
        """[count] ids, memory-mapped, read only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def part(self, first: int, last: int) -> TokenSlice:
        """The ids in [first, last)."""
        return TokenSlice(self, first, last)


@dataclass(frozen=True)
class TokenSlice:
    """A contiguous part of a token file."""

    file: TokenFile
    first: int
    last: int

    @property
    def array(self) -> NDArray[np.generic]:
        """[last - first] ids."""
        return self.file.array[self.first : self.last]

    @property
    def count(self) -> int:
        """Number of ids."""
        return self.last - self.first


@dataclass(frozen=True)
class Tokenizer:
    """``encode`` gives the ids of one document, without an end-of-text id."""

    encode: Callable[[str], NDArray[np.int64]]
    vocabulary_size: int
    end_of_text: int


def open_tokenizer(uri: str) -> Tokenizer:
    """``bytes``, a folder in Hugging Face layout (vocab.json and merges.txt suffice), or a hub id.

    Raises DataError.
    """
    if uri == "bytes":
        return Tokenizer(
            lambda text: np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64),
            _END_OF_TEXT_BYTE + 1,
            _END_OF_TEXT_BYTE,
        )
    folder = Path(uri)
    if (folder / "merges.txt").exists() and not (folder / "tokenizer.json").exists():
        return _byte_level_bpe(folder)
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(uri)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            "spec.data.tokenizer", f"{uri}: {first}", "give a tokenizer folder"
        ) from None
    end = hf.eos_token_id if hf.eos_token_id is not None else len(hf) - 1
    return Tokenizer(
        lambda text: np.asarray(hf(text, add_special_tokens=False)["input_ids"], dtype=np.int64),
        len(hf),
        int(end),
    )


def _byte_level_bpe(folder: Path) -> Tokenizer:
    """GPT-2's own layout: vocab.json and merges.txt."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    size = bpe.get_vocab_size()
    end = bpe.token_to_id("<|endoftext|>")
    return Tokenizer(
        lambda text: np.asarray(bpe.encode(text).ids, dtype=np.int64),
        size,
        size - 1 if end is None else int(end),
    )


def prepare(data: Data, folder: Path, *, progress: bool) -> tuple[TokenSlice, TokenSlice]:
    """Training and validation tokens; tokenised on the first call, mapped on later ones.

    Raises DataError where there is too little text for one window of training and validation.
    """
    tokenizer = open_tokenizer(data.tokenizer)
    train = _tokenise(data.train, "spec.data.train", data.tokenizer, tokenizer, folder, progress)
    window = data.sequence_length + 1
    if data.validation.source is not None:
        held = _tokenise(
            data.validation.source,
            "spec.data.validation.source",
            data.tokenizer,
            tokenizer,
            folder,
            progress,
        )
        parts = train.part(0, train.count), held.part(0, held.count)
    else:
        cut = int(train.count * (1 - data.validation.fraction))
        cut = min(cut, train.count - window)
        parts = train.part(0, max(cut, 0)), train.part(max(cut, 0), train.count)
    for name, part in zip(("spec.data.train", "spec.data.validation"), parts, strict=True):
        if part.count < window:
            raise DataError(
                name, f"{part.count} tokens are fewer than one window of {window}", "give more text"
            )
    return parts


def _tokenise(
    source: TextSource,
    field: str,
    tokenizer_uri: str,
    tokenizer: Tokenizer,
    folder: Path,
    progress: bool,  # noqa: FBT001
) -> TokenFile:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32"
    name = _identity(source, tokenizer_uri, field)
    path, card = folder / f"{name}.bin", folder / f"{name}.json"
    if card.exists():
        return TokenFile(path=path, **json.loads(card.read_text()))
    partial = folder / f"{name}.{os.getpid()}.part"
    count = 0
    with partial.open("wb") as file:
        for ids in _encoded(source, field, tokenizer, progress=progress):
            file.write(ids.astype(dtype).tobytes())
            count += len(ids)
    facts = {
        "dtype": dtype,
        "count": count,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
    }
    partial.replace(path)
    pending = folder / f"{name}.{os.getpid()}.json.part"
    pending.write_text(json.dumps(facts))
    pending.replace(card)
    return TokenFile(path=path, **json.loads(card.read_text()))


def _identity(source: TextSource, tokenizer_uri: str, field: str) -> str:
    """A digest of what goes in: the source, the tokenizer, and each file's size and time."""
    files = [
        (str(path), status.st_size, status.st_mtime_ns)
        for path in source_files(source, field)
        for status in [path.stat()]
    ]
    text = json.dumps([source.model_dump(mode="json"), tokenizer_uri, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encoded(
    source: TextSource, field: str, tokenizer: Tokenizer, *, progress: bool
) -> Iterator[NDArray[np.int64]]:
    pieces: list[NDArray[np.int64]] = []
    held = 0
    bar = Progress(
        TextColumn("tokenising"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        disable=not (progress and sys.stderr.isatty()),
    )
    with bar:
        task = bar.add_task("tokenising", total=source.max_bytes or None)
        for text in documents(source, field):
            pieces += [tokenizer.encode(text), np.array([tokenizer.end_of_text])]
            held += len(pieces[-2]) + 1
            bar.advance(task, len(text))
            if held >= _FLUSH_TOKENS:
                yield np.concatenate(pieces)
                pieces, held = [], 0
    if pieces:
        yield np.concatenate(pieces)
