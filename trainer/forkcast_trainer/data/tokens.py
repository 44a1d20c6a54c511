"""Tokenise once, into a memory-mapped file that every process of the run shares."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from forkcast_trainer.data.decode import Counts
from forkcast_trainer.data.encoding import batches, default_workers, encoded
from forkcast_trainer.data.ready import ids_of
from forkcast_trainer.data.sources import Located, Texts, locate
from forkcast_trainer.data.text import pieces
from forkcast_trainer.data.token_file import Card, TokenFile, TokenSlice, alone, kept
from forkcast_trainer.data.tokenizer import BYTES, Tokenizer, open_tokenizer
from forkcast_trainer.errors import DataError
from forkcast_wire import beats
from forkcast_wire.documents import dump
from forkcast_wire.files import replace_bytes, replaced
from forkcast_wire.manifest import Data, TextSource

_log = structlog.get_logger()
_LINE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text. parts: contiguous, in order. sha256: of all ids of its files."""

    label: str
    weight: float
    parts: Sequence[TokenSlice]

    @property
    def count(self) -> int:
        """Number of ids."""
        return sum(part.count for part in self.parts)

    @property
    def files(self) -> Sequence[TokenFile]:
        """Those that its parts are of."""
        return [part.file for part in self.parts]


@dataclass(frozen=True)
class RunTokens:
    """What a run trains on, and what is held out: as many texts, or one of its own."""

    train: Sequence[Tokens]
    held: Sequence[Tokens]
    vocabulary_size: int

    @property
    def files(self) -> Sequence[TokenFile]:
        """The token files of the run, each once."""
        found = [file for text in (*self.train, *self.held) for file in text.files]
        return list({file.path: file for file in found}.values())


def prepare(
    data: Data,
    folder: Path,
    *,
    progress: bool,
    workers: int | None = None,
    texts: Texts | None = None,
) -> RunTokens:
    """Training and validation tokens; tokenised on the first call, mapped on later ones.

    workers: processes; None: as many as cores. The tokens do not depend on it. texts: as `locate`
    finds them; None: looks. Raises DataError if there is too little text for one window of training and
    validation.
    """
    texts = texts or locate(data)
    maker = _Maker(data, folder, workers or default_workers(), progress=progress)
    window = data.sequence_length + 1
    train, held = [], []
    for text in texts.train:
        whole = maker.parts(text)
        fraction = data.validation.fraction if texts.held is None else 0.0
        first, rest = _cut(whole, fraction, window)
        train.append(Tokens(text.label, text.weight, first))
        _check(train[-1], window, text.field)
        if texts.held is None:
            held.append(Tokens(text.label, text.weight, rest))
            _check(held[-1], window, "spec.data.validation")
    if texts.held is not None:
        held = [Tokens(texts.held.label, 1.0, maker.parts(texts.held))]
        _check(held[0], window, "spec.data.validation")
    sizes = [part.file.vocabulary_size for text in (*train, *held) for part in text.parts]
    vocabulary, most = data.vocabulary_size, max(sizes)
    if vocabulary is not None and vocabulary < most:
        rule = f"{vocabulary:,} is fewer than the {most:,} ids of the tokenizer"
        raise DataError("spec.data.vocabularySize", rule, "raise it, or leave it out")
    return RunTokens(train, held, vocabulary or most)


def _cut(
    parts: Sequence[TokenSlice], fraction: float, window: int
) -> tuple[Sequence[TokenSlice], Sequence[TokenSlice]]:
    """The parts without, and the parts of, the last ``fraction`` of their ids: at least one window of
    them; nothing for fraction 0.
    """
    if not fraction:
        return parts, []
    count = sum(part.count for part in parts)
    cut = max(0, min(int(count * (1 - fraction)), count - window))
    first, rest = [], []
    for part in parts:
        here = min(max(cut, 0), part.count)
        cut -= part.count
        if here:
            first.append(part.file.part(part.first, part.first + here))
        if here < part.count:
            rest.append(part.file.part(part.first + here, part.last))
    return first, rest


def _check(tokens: Tokens, window: int, field: str) -> None:
    longest = max((part.count for part in tokens.parts), default=0)
    if longest < window:
        rule = f"{longest} tokens are fewer than one window of {window}"
        raise DataError(field, rule, "give more text")


class _Maker:
    """Makes the token files of a run, or finds them."""

    def __init__(self, data: Data, folder: Path, workers: int, *, progress: bool) -> None:
        self._data, self._folder = data, folder
        self._workers, self._progress = workers, progress

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self._data.tokenizer)

    @cached_property
    def _vocabulary(self) -> int | None:
        """Of tokens that somebody else has made; None: not said."""
        if self._data.vocabulary_size is not None or self._data.tokenizer == BYTES:
            return self._data.vocabulary_size
        return self._tokenizer.vocabulary_size

    def parts(self, text: Located) -> Sequence[TokenSlice]:
        """All tokens of a text. Raises DataError."""
        if not text.ready:
            file = self.made(text)
            return [file.part(0, file.count)]
        self._folder.mkdir(parents=True, exist_ok=True)
        left, parts = text.source.max_bytes or sys.maxsize, []
        for name, path in text.ready:
            with alone(self._folder):
                file = ids_of(path, name, text.source, text.field, self._folder, self._vocabulary)
            width = np.dtype(file.dtype).itemsize
            if (count := min(file.count, left // width)) > 0:
                parts.append(file.part(0, count))
            left -= count * width
        return parts

    def made(self, text: Located) -> TokenFile:
        """The token file of a text. Raises DataError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if (found := kept(self._folder, text.name)) is not None:
            return found
        with alone(self._folder):
            # another process may have made it meanwhile
            return kept(self._folder, text.name) or self._new(text)

    def _new(self, text: Located) -> TokenFile:
        field, name = text.field, text.name
        tokenizer, path = self._tokenizer, self._folder / f"{name}.bin"
        counts, digest, size = Counts(), hashlib.sha256(), 0
        with replaced(path) as file, closing(self._ids(text, counts)) as found:
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
        return TokenFile(path=path, name=name, **asdict(card))

    def _ids(self, text: Located, counts: Counts) -> Generator[bytes]:
        """The ids of all documents, a batch at a time. Raises DataError for empty text."""
        tokenizer, source, field = self._tokenizer, text.source, text.field
        read = pieces(source, field, counts, text.files)
        found = encoded(batches(read), tokenizer, self._workers)
        with closing(found), _told(source, field, shown=self._progress) as advance:
            for batch, ids in found:
                beats.beat()
                if tokenizer.mark:
                    counts.marks += sum(one.count(tokenizer.mark) for one in batch.texts)
                advance(sum(map(len, batch.texts)))
                yield ids
        if not counts.characters:
            raise DataError(f"{field}.uri", f"{source.uri} holds no text", "give more text")


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
