"""Columns under a header: CSV of one's own loops, Lightning's CSVLogger (cells may be empty), TSV.

A header is a line of names over a line of as many cells, mostly numbers. Lines before it, and lines of
another width, are passed over; a second header begins a second table. Where commas do not part the cells
they may be decimal ones, as spreadsheets write them in half of Europe.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Final

from forkcast_cli.logs.base import LineReader, Row, TextFormat
from forkcast_cli.logs.numbers_in_text import NUMBER

_DELIMITERS: Final = ",\t;|"
_NUMBER: Final = re.compile(rf"\s*{NUMBER}\s*")
#: A line between the header and the rows of a table for people.
_RULE: Final = re.compile(r"[\s|:+=-]*")
_DECIMAL_COMMA: Final = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_MOST_CELLS: Final = 4096


class Table(LineReader):
    """A table's rows as values by the header's names."""

    def __init__(self) -> None:
        self._delimiter = ","
        self._header: list[str] = []
        self._candidate: list[str] = []
        self._candidate_delimiter = ","
        self._odd = 0

    def rows(self, line: str) -> Iterable[Row]:
        """The cells that are not empty."""
        cells = self.cells(line)
        if not cells:
            return ()
        return (Row({n: c for n, c in zip(self._header, cells, strict=True) if c and n}),)

    def cells(self, line: str) -> Sequence[str]:
        """The cells of a line of the table; none for any other line."""
        if self._header:
            cells = split(line, self._delimiter)
            if len(cells) == len(self._header) and not self._names(cells):
                return cells
        if self._candidate:
            cells = split(line, self._candidate_delimiter)
            if len(cells) == len(self._candidate) and _numeric(cells):
                self._header, self._candidate = self._candidate, []
                self._delimiter = self._candidate_delimiter
                self.headed(self._header)
                return cells
        found = next((d for d in _DELIMITERS if d in line), None)
        if _RULE.fullmatch(line):
            return ()
        if found is None:
            self._odd += bool(self._header)
            return ()
        cells = split(line, found)
        self._odd += bool(self._header) and not self._names(cells)
        self._candidate = cells if self._names(cells) else []
        self._candidate_delimiter = found
        return ()

    def headed(self, header: Sequence[str]) -> None:
        """A header has been found."""

    def remarks(self) -> list[str]:
        """How many lines did not fit the header."""
        odd = (
            f"{self._odd:,} line{'s' * (self._odd > 1)} of another width than the header: left out"
        )
        return [odd] if self._odd else []

    @staticmethod
    def _names(cells: Sequence[str]) -> bool:
        """Whether the cells can be a header; an index column may have no name."""
        named = [cell for cell in cells if cell]
        return (
            len(named) > 1 and len(cells) <= _MOST_CELLS and not any(map(_NUMBER.fullmatch, named))
        )


def split(line: str, delimiter: str) -> list[str]:
    """The cells of a line, without quotes and blanks around them; decimal commas become points."""
    if '"' not in line:
        cells = [cell.strip() for cell in line.split(delimiter)]
    else:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
        except csv.Error:
            return []
    if delimiter == "," or "," not in line or "." in line:
        return cells
    return [c.replace(",", ".") if _DECIMAL_COMMA.fullmatch(c) else c for c in cells]


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a line is one of numbers: at least one, and no fewer than half of what is there."""
    filled = [cell for cell in cells if cell]
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in filled)
    return numbers > 0 and 2 * numbers >= len(filled)


def lacks_header(lines: Sequence[str]) -> bool:
    """Whether the lines are those of a table of numbers without a header."""
    return bool(lines) and all(
        len(cells) > 1 and all(map(_NUMBER.fullmatch, filter(None, cells)))
        for line in lines
        for cells in [split(line, next((d for d in _DELIMITERS if d in line), ","))]
    )


FORMAT: Final = TextFormat(name="CSV table", reader=Table)
