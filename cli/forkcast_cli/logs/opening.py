"""Which format a log is of, and its rows.

A file's first bytes say whether it has a structure of its own. A text is read by all formats of the
shelf at once, line by line, until one of them has found enough losses; the others are dropped. Nothing
is read twice, and no more is held than those rows, so that a pipe is read like a file and a log may
begin with any number of lines of something else.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from forkcast_cli.logs import TEXT, WHOLE
from forkcast_cli.logs.base import (
    HEAD,
    LineReader,
    LogError,
    NothingFitsError,
    Row,
    TextFormat,
    WholeFormat,
)
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.delimited import lacks_header
from forkcast_cli.logs.names import Role
from forkcast_cli.logs.stream import LONGEST_LINE, Stream

#: A format that has found so many losses is the log's; while a program is still printing, so many.
ENOUGH: Final = 20
ENOUGH_LIVE: Final = 5
#: Of the formats that read a log the first is taken that reads at least one of so many rows.
_SHARE: Final = 4
#: Rows that a format may hold before it is chosen, of them before its first loss, and texts in them.
_MOST_HELD: Final = 4096
_MOST_BEFORE: Final = 64
_LONGEST_TEXT: Final = 64
_MOST_LAYERS: Final = 256
#: Rows whose names are seen before columns are chosen, and bytes by which a format is known.
_FIRST_ROWS: Final = 256
_FIRST_LIVE: Final = 16
_HEAD_LIVE: Final = 16
_SHOWN_LINES, _SHOWN_WIDTH = 5, 100
_RANK: Final = re.compile(r"\[(?:rank|default)(\d{1,6})\]:\s?")
_REMEDY: Final = "name its columns by --columns step=NAME,loss=NAME"


@dataclass(slots=True)
class Log:
    """A log that is being read. rows: to be taken once. columns: complete after the last row."""

    format: str
    note: str
    columns: Columns
    rows: Iterator[Row]
    stream: Stream
    reader: LineReader | None = None
    other_ranks: int = 0

    def remarks(self) -> list[str]:
        """What is to be known of the log, in words; after its last row."""
        notes = [self.note] if self.note else []
        notes += self.reader.remarks() if self.reader is not None else []
        if self.other_ranks:
            notes.append(f"{self.other_ranks:,} lines of other ranks: left out")
        if self.stream.long_lines:
            lines = f"{self.stream.long_lines:,} lines longer than {LONGEST_LINE:,} characters"
            notes.append(f"{lines}: left out")
        if self.stream.cut_short:
            notes.append("the file is cut short: its last entry was left out")
        return notes


def open_log(stream: Stream, columns: Columns, *, live: bool = False) -> Log:
    """The log in the format that fits. Raises LogError, OSError."""
    stream.decompress()
    # the first bytes of what is still being written may take long to come
    head = stream.peek(_HEAD_LIVE if live else HEAD)
    if not head:
        raise LogError("is empty", "give a log with a loss a line")
    for whole in WHOLE:
        if whole.fits(head):
            return _whole(stream, whole, columns, _FIRST_LIVE if live else _FIRST_ROWS)
    if live:
        return _text(stream, columns, ENOUGH_LIVE)
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LogError(
            "is neither text nor a format that is known", "export it as CSV or JSON lines"
        )
    return _text(stream, columns, ENOUGH)


def nothing_fits(columns: Columns, head: Sequence[str] = ()) -> NothingFitsError:
    """Why a log has no loss: its columns or, if it has none, its first lines."""
    missing, seen = columns.missing(), [name[:_LONGEST_TEXT] for name in columns.seen()]
    known = ", ".join(seen[:20]) + (", ..." if len(seen) > 20 else "")
    if missing and seen:
        return NothingFitsError(f"has no column {', '.join(missing)}", f"it has: {known}")
    if seen:
        return NothingFitsError(f"none of its columns is a training loss ({known})", _REMEDY)
    if lacks_header(head):
        remedy = "write a line of names above them, such as step,loss"
        return NothingFitsError("its numbers have no names", remedy, head)
    return NothingFitsError("nothing in it looks like a training loss", _REMEDY, head)


def _whole(stream: Stream, whole: WholeFormat, columns: Columns, enough: int) -> Log:
    rows = whole.rows(stream)
    first = list(islice(rows, enough))
    columns.decide(row.values for row in first)
    columns.weigh([row.values for row in first])
    return Log(whole.name, whole.note, columns, chain(first, rows), stream)


class _Candidate:
    """A format that reads along until one is chosen."""

    def __init__(self, text: TextFormat, columns: Columns) -> None:
        self.format = text
        self.reader = text.reader()
        self.columns = columns
        self.rows: deque[Row] = deque(maxlen=_MOST_HELD)
        self.losses = 0

    def read(self, line: str) -> int:
        """Read a line; how many losses there have been."""
        for row in self.reader.rows(line):
            if not self.losses and len(self.rows) > _MOST_BEFORE:
                self.rows.popleft()
            self.rows.append(_slim(row))
            self.losses += self.columns.has_loss(row.values)
        return self.losses


def _slim(row: Row) -> Row:
    """A row that is held, without what is neither a number, nor one a layer, nor a name."""
    if all(_is_short(value) for value in row.values.values()):
        return row
    values = {name: value for name, value in row.values.items() if _is_short(value)}
    return Row(values, row.run)


def _is_short(value: object) -> bool:
    if isinstance(value, list):  # one value a layer
        return len(value) <= _MOST_LAYERS and all(isinstance(one, int | float) for one in value)
    return isinstance(value, int | float) or (
        isinstance(value, str) and len(value) <= _LONGEST_TEXT
    )


class _Lines:
    """The lines of one rank: the first that has any."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.others = 0
        self.head: list[str] = []
        self._rank: str | None = None

    def __iter__(self) -> Iterator[str]:
        for line in self.stream.lines():
            if line.startswith("["):
                found = _RANK.match(line)
                if found is not None:
                    self._rank = self._rank or found[1]
                    if found[1] != self._rank:
                        self.others += 1
                        continue
                    yield line[found.end() :]
                    continue
            if len(self.head) < _SHOWN_LINES and line.strip():
                self.head.append(line[:_SHOWN_WIDTH])
            yield line


def _text(stream: Stream, columns: Columns, enough: int) -> Log:
    candidates = [_Candidate(text, Columns(columns.given)) for text in TEXT]
    lines = _Lines(stream)
    each = iter(lines)
    for line in each:
        if max([candidate.read(line) for candidate in candidates]) >= enough:
            break
    found = _chosen(candidates)
    if found is None:
        raise _no_text(candidates, lines.head)
    found.columns.decide(row.values for row in found.rows)
    found.columns.weigh([row.values for row in found.rows])
    log = Log(found.format.name, found.format.note, found.columns, iter(()), stream, found.reader)
    log.rows = _rest(log, found, lines, each)
    return log


def _rest(log: Log, found: _Candidate, lines: _Lines, each: Iterable[str]) -> Iterator[Row]:
    yield from found.rows
    found.rows.clear()
    read = found.reader.rows
    for line in each:
        yield from read(line)
    log.other_ranks = lines.others


def _chosen(candidates: Sequence[_Candidate]) -> _Candidate | None:
    most = max(candidate.losses for candidate in candidates)
    return next((one for one in candidates if 0 < most <= one.losses * _SHARE), None)


def _no_text(candidates: Sequence[_Candidate], head: Sequence[str]) -> NothingFitsError:
    """If a table or JSON lines were read, their names help more than the first lines."""
    for candidate in candidates:
        if candidate.format is not TEXT[-1] and candidate.rows:
            columns = candidate.columns
            columns.learn({name: None for row in candidate.rows for name in row.values})
            if columns.seen() and (columns.given.get(Role.LOSS) or Role.LOSS not in columns.found):
                return nothing_fits(columns, head)
    return nothing_fits(Columns(), head)
