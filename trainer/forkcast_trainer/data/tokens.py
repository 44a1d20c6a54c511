"""Tokenise once, into a memory-mapped file that every process of the run shares."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from forkcast_trainer.data.decode import Counts
from forkcast_trainer.data.files import source_files
from forkcast_trainer.data.text import pieces
from forkcast_trainer.errors import DataError
from forkcast_wire import beats
from forkcast_wire.echo import first_line
from forkcast_wire.files import replace_bytes, replaced
from forkcast_wire.manifest import Data, TextSource
from forkcast_wire.manifest_file import looks_like_path

_log = structlog.get_logger()
_END_OF_TEXT_BYTE = 256
_FLUSH_TOKENS = 1 << 20


@dataclass(frozen=True)
class TokenFile:
    """``count`` token ids, uint16 or uint32, documents separated by ``end_of_text``. sha256: of the
    ids as they are in the file.
    """

    path: Path
    dtype: str
    count: int
    vocabulary_size: int
    end_of_text: int
    sha256: str

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
    """``encode`` gives the ids of a piece of text, without an end-of-text id; the text of a special
    token is plain text to it. mark: the text of the end-of-text token, if it has one.
    """

    encode: Callable[[str], NDArray[np.integer]]
    vocabulary_size: int
    end_of_text: int
    mark: str | None = None


def open_tokenizer(uri: str) -> Tokenizer:
    """``bytes``, a folder in Hugging Face layout (vocab.json and merges.txt suffice), or a hub id.

    Raises DataError.
    """
    if uri == "bytes":
        return Tokenizer(
            lambda text: np.frombuffer(text.encode(), dtype=np.uint8),
            _END_OF_TEXT_BYTE + 1,
            _END_OF_TEXT_BYTE,
        )
    folder = Path(uri)
    if not folder.is_dir() and looks_like_path(uri):
        raise DataError(
            "spec.data.tokenizer", f"no such folder: {folder.absolute()}", "give a tokenizer folder"
        )
    gpt2 = (folder / "merges.txt").exists() and not (folder / "tokenizer.json").exists()
    try:
        return _byte_level_bpe(folder) if gpt2 else _hugging_face(uri)
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises bare Exceptions
        first = first_line(error)
        what = uri if folder.is_dir() else f"{uri}: no such folder, and as a hub id"
        raise DataError(
            "spec.data.tokenizer", f"{what}: {first}", "give a tokenizer folder"
        ) from None


def _hugging_face(uri: str) -> Tokenizer:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(uri, trust_remote_code=False)
    return _with_end(
        lambda text: hf(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ],
        hf.get_vocab(),
        hf.eos_token_id,
        hf.eos_token,
    )


def _byte_level_bpe(folder: Path) -> Tokenizer:
    """GPT-2's own layout: vocab.json and merges.txt."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    mark = "<|endoftext|>"
    end = bpe.token_to_id(mark)
    return _with_end(lambda text: bpe.encode(text).ids, bpe.get_vocab(), end, mark)


def _with_end(
    encode: Callable[[str], list[int]],
    vocabulary: dict[str, int],
    end: int | None,
    mark: str | None,
) -> Tokenizer:
    """A tokenizer without an end-of-text gets one more id for it, as bytes do: any id of its own
    would be a word.
    """
    size = max(vocabulary.values()) + 1
    return Tokenizer(
        lambda text: np.asarray(encode(text), dtype=np.int64),
        size if end is not None else size + 1,
        size if end is None else int(end),
        mark if end is not None else None,
    )


def prepare(data: Data, folder: Path, *, progress: bool) -> tuple[TokenSlice, TokenSlice]:
    """Training and validation tokens; tokenised on the first call, mapped on later ones.

    Raises DataError if there is too little text for one window of training and validation.
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
    if (kept := _kept(path, card)) is not None:
        return kept
    with _alone(folder):
        if (kept := _kept(path, card)) is not None:
            return kept  # another process has made it meanwhile
        counts, digest = Counts(), hashlib.sha256()
        with replaced(path) as file:
            count = 0
            for ids in _encoded(source, field, tokenizer, counts, progress=progress):
                data = ids.astype(dtype).tobytes()
                digest.update(data)
                file.write(data)
                count += len(ids)
        tell = _log.warning if counts.not_text or counts.marks else _log.info
        tell("data.read", source=field, tokens=count, **asdict(counts))
        facts = {
            "dtype": dtype,
            "count": count,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text": tokenizer.end_of_text,
            "sha256": digest.hexdigest(),
        }
        replace_bytes(card, json.dumps(facts).encode())
    return TokenFile(path=path, **json.loads(card.read_text()))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets the next one in when it dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with beats.during(beats.Phase.MEET):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _kept(path: Path, card: Path) -> TokenFile | None:
    """What an earlier call left, unless a crash of the machine cut it short."""
    try:
        file = TokenFile(path=path, **json.loads(card.read_text()))
        whole = path.stat().st_size == file.count * np.dtype(file.dtype).itemsize
    except (OSError, ValueError, TypeError):
        return None
    return file if whole else None


def _identity(source: TextSource, tokenizer_uri: str, field: str) -> str:
    """A digest of what goes in: the source, the tokenizer, and the size and time of each of their
    files.
    """
    tokenizer = Path(tokenizer_uri)
    files = source_files(source, field)
    if tokenizer.is_dir():
        files += sorted(path for path in tokenizer.iterdir() if path.is_file())
    seen = [(str(p), status.st_size, status.st_mtime_ns) for p in files for status in [p.stat()]]
    text = json.dumps([source.model_dump(mode="json"), tokenizer_uri, seen])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encoded(
    source: TextSource, field: str, tokenizer: Tokenizer, counts: Counts, *, progress: bool
) -> Iterator[NDArray[np.integer]]:
    """The ids of all documents, piece by piece. Raises DataError for empty text."""
    end = np.array([tokenizer.end_of_text])
    waiting: list[NDArray[np.integer]] = []
    held = 0
    with _bar(source.max_bytes, shown=progress and sys.stderr.isatty()) as advance:
        for text, ends in pieces(source, field, counts):
            beats.beat()
            ids = tokenizer.encode(text)
            waiting += [ids, end] if ends else [ids]
            held += len(ids) + ends
            counts.marks += text.count(tokenizer.mark) if tokenizer.mark else 0
            advance(len(text))
            if held >= _FLUSH_TOKENS:
                yield np.concatenate(waiting)
                waiting, held = [], 0
    if not counts.characters:
        raise DataError(f"{field}.uri", f"{source.uri} holds no text", "give more text")
    if waiting:
        yield np.concatenate(waiting)


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` bytes (0 = unknown), or nothing."""
    if not shown:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("tokenising", total=total or None)
        yield lambda read: bar.advance(task, read)
