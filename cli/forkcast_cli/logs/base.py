"""What a reader of a log gives, and what a format is.

A reader trusts nothing and detectors nothing: it gives the values of a log under the log's own names, as
numbers or as text. Which name is the loss is decided by `columns`, what a step is by `points`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from forkcast_cli.logs.stream import Stream

Values: TypeAlias = Mapping[str, Any]


class LogError(ValueError):
    """A log that cannot be read, in one line. what: the rule that is broken. remedy: what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = " ".join(what.split()), " ".join(remedy.split())
        super().__init__(f"{self.what}; {self.remedy}")


class NothingFitsError(LogError):
    """No format fits. head: the first lines of the log, as they are."""

    def __init__(self, what: str, remedy: str, head: Sequence[str] = ()) -> None:
        super().__init__(what, remedy)
        self.head = tuple(head)


class Row(NamedTuple):
    """Values of one log entry. run: the name of the run it is of, if a log holds several side by side."""

    values: Values
    run: str = ""


class LineReader:
    """Reads one log line by line; may remember earlier lines."""

    def rows(self, line: str) -> Iterable[Row]:
        """What the line holds: mostly one row or none."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What is to be known of the lines read so far, in words."""
        return []


class Stateless(LineReader):
    """Each line by itself, whatever came before it. read: its values, or None."""

    def __init__(self, read: Callable[[str], Values | None]) -> None:
        self._read = read

    def rows(self, line: str) -> Iterable[Row]:  # noqa: D102
        values = self._read(line)
        return () if values is None else (Row(values),)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """A log of lines. reader: makes a fresh LineReader for each log.

    note: what is to be known of any log of this format, in words; empty if nothing.
    """

    name: str
    reader: Callable[[], LineReader]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFormat:
    """A file of its own structure, known by its first bytes.

    fits: whether the first bytes (at most HEAD of them) are of this format. rows: raises LogError if
    the file is damaged before its last record; a last record that is cut short is left out.
    """

    name: str
    fits: Callable[[bytes], bool]
    rows: Callable[[Stream], Iterator[Row]]
    note: str = ""


#: How many of the first bytes a WholeFormat may look at.
HEAD = 1 << 16
