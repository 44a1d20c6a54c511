"""Tokenise once, into a memory-mapped file that every process of the run shares."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from forkcast_trainer.data.decode import Counts
from forkcast_trainer.data.encoding import batches, default_workers, encoded
from forkcast_trainer.data.files import source_files
from forkcast_trainer.data.text import pieces
from forkcast_trainer.data.tokenizer import Tokenizer, digest_of, open_tokenizer
from forkcast_trainer.errors import DataError
from forkcast_wire import beats
from forkcast_wire.documents import DocumentError, dump, load
from forkcast_wire.files import replace_bytes, replaced
from forkcast_wire.manifest import Data, TextSource

_log = structlog.get_logger()
#: Of the rules by which text becomes ids; with other rules a kept file is another's.
_RULES: Final = 2
_TRAIN: Final = "spec.data.train"
_HELD: Final = "spec.data.validation.source"
_LINE_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Card:
    """What stands beside a token file: ``count`` ids, documents separated by ``end_of_text``. sha256: of
    the ids as they are in the file.
    """

    dtype: Literal["uint16", "uint32"]
    count: NonNegativeInt
    vocabulary_size: PositiveInt
    end_of_text: NonNegativeInt
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the token file."""
        return self.count * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class TokenFile(Card):
    """A token file of this machine."""

    path: Path

    @cached_property
    def array(self) -> NDArray[np.generic]:
        """[count] ids, memory-mapped, read only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def part(self, first: int, last: int) -> TokenSlice:
        """The ids in [first, last)."""
        return TokenSlice(self, first, last)


def card_of(file: TokenFile) -> Card:
    """Its facts, without its place."""
    facts = asdict(file)
    del facts["path"]
    return Card(**facts)


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


def prepare(
    data: Data, folder: Path, *, progress: bool, workers: int | None = None
) -> tuple[TokenSlice, TokenSlice]:
    """Training and validation tokens; tokenised on the first call, mapped on later ones.

    workers: processes; None: as many as cores. The tokens do not depend on it. Raises DataError if
    there is too little text for one window of training and validation.
    """
    maker = _Maker(data.tokenizer, folder, workers or default_workers(), progress=progress)
    train = maker.made(data.train, _TRAIN)
    window = data.sequence_length + 1
    if data.validation.source is not None:
        held = maker.made(data.validation.source, _HELD)
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


class _Maker:
    """Makes the token files of a run, or finds them."""

    def __init__(self, tokenizer: str, folder: Path, workers: int, *, progress: bool) -> None:
        self._uri, self._folder = tokenizer, folder
        self._workers, self._progress = workers, progress

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self._uri)

    @cached_property
    def _digest(self) -> str:
        return _digest_of(self._uri)

    def made(self, source: TextSource, field: str) -> TokenFile:
        """The token file of a source. Raises DataError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = _name(source, self._digest, field)
        if (found := kept(self._folder, name)) is not None:
            return found
        with alone(self._folder):
            # another process may have made it meanwhile
            return kept(self._folder, name) or self._new(source, field, name)

    def _new(self, source: TextSource, field: str, name: str) -> TokenFile:
        tokenizer, path = self._tokenizer, self._folder / f"{name}.bin"
        counts, digest, size = Counts(), hashlib.sha256(), 0
        with replaced(path) as file, closing(self._ids(source, field, counts)) as found:
            for ids in found:
                digest.update(ids)
                file.write(ids)
                size += len(ids)
        count = size // np.dtype(tokenizer.dtype).itemsize
        tell = _log.warning if counts.not_text or counts.marks else _log.info
        tell("data.read", source=field, tokens=count, **asdict(counts))
        card = Card(
            dtype=tokenizer.dtype,
            count=count,
            vocabulary_size=tokenizer.vocabulary_size,
            end_of_text=tokenizer.end_of_text,
            sha256=digest.hexdigest(),
        )
        replace_bytes(self._folder / f"{name}.json", dump(card))
        return TokenFile(path=path, **asdict(card))

    def _ids(self, source: TextSource, field: str, counts: Counts) -> Generator[bytes]:
        """The ids of all documents, a batch at a time. Raises DataError for empty text."""
        tokenizer = self._tokenizer
        found = encoded(batches(pieces(source, field, counts)), tokenizer, self._workers)
        with closing(found), _told(source, field, shown=self._progress) as advance:
            for batch, ids in found:
                beats.beat()
                if tokenizer.mark:
                    counts.marks += sum(text.count(tokenizer.mark) for text in batch.texts)
                advance(sum(map(len, batch.texts)))
                yield ids
        if not counts.characters:
            raise DataError(f"{field}.uri", f"{source.uri} holds no text", "give more text")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets the next one in when it dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with beats.during(beats.Phase.MEET):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def kept(folder: Path, name: str) -> TokenFile | None:
    """The token file of this name that stands in the folder, unless a crash of the machine cut it short."""
    path = folder / f"{name}.bin"
    try:
        card = load(Card, (folder / f"{name}.json").read_bytes())
        whole = path.stat().st_size == card.size
    except (OSError, DocumentError):
        return None
    return TokenFile(path=path, **asdict(card)) if whole else None


def names(data: Data) -> list[str]:
    """Of the token files of a run, without suffix. Raises DataError."""
    digest = _digest_of(data.tokenizer)
    found = [_name(data.train, digest, _TRAIN)]
    if data.validation.source is not None:
        found.append(_name(data.validation.source, digest, _HELD))
    return found


def _digest_of(tokenizer: str) -> str:
    try:
        return digest_of(tokenizer)
    except OSError as error:
        rule = f"{tokenizer}: {error.strerror}"
        raise DataError("spec.data.tokenizer", rule, "make it readable") from None


def _name(source: TextSource, tokenizer_digest: str, field: str) -> str:
    """A digest of what goes in: the source, the tokenizer, and the size and time of the source's files."""
    seen = [
        (str(path), status.st_size, status.st_mtime_ns)
        for path in source_files(source, field)
        for status in [path.stat()]
    ]
    text = json.dumps([_RULES, source.model_dump(mode="json"), tokenizer_digest, seen])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def _told(source: TextSource, field: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Tells how much text was tokenised: a bar on a terminal, else a line of the log every ten seconds."""
    if not shown:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(source.max_bytes) as advance:
            yield advance
    else:
        yield _Lines(field).add


class _Lines:
    def __init__(self, field: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._field, self._characters, self._clock = field, 0, clock
        self._began = self._told = clock()

    def add(self, characters: int) -> None:
        """So many more characters."""
        self._characters += characters
        now = self._clock()
        if now - self._told >= _LINE_SECONDS:
            self._told, rate = now, self._characters / (now - self._began)
            millions = round(self._characters / 1e6, 1)
            _log.info(
                "data.tokenising", source=self._field, millions=millions, per_second=round(rate)
            )


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` bytes; 0 = unknown."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("tokenising", total=total or None)
        yield lambda read: bar.advance(task, read)
