"""Columns under a header: CSV of one's own loops, Lightning's CSVLogger (cells may be empty), TSV.

A header is a line of names over a line of as many cells, mostly numbers. Lines before it, and lines of
another width, are passed over; a second header begins a second table.
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
_MOST_CELLS: Final = 4096


class Table(LineReader):
    """A table's rows as values by the header's names."""

    def __init__(self) -> None:
        self._delimiter = ","
        self._header: list[str] = []
        self._candidate: list[str] = []
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
        found = next((d for d in _DELIMITERS if d in line), None)
        if found is None:
            self._odd += bool(self._header)
            return ()
        cells = split(line, found)
        if self._candidate and len(cells) == len(self._candidate) and _numeric(cells):
            self._header, self._delimiter, self._candidate = self._candidate, found, []
            self.headed(self._header)
            return cells
        self._odd += bool(self._header) and not self._names(cells)
        self._candidate = cells if self._names(cells) else []
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
    """The cells of a line, without quotes and blanks around them."""
    if '"' not in line:
        return [cell.strip() for cell in line.split(delimiter)]
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error:
        return []


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a line is one of numbers: at least one, and no fewer than half of what is there."""
    filled = [cell for cell in cells if cell]
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in filled)
    return numbers > 0 and 2 * numbers >= len(filled)


FORMAT: Final = TextFormat(name="CSV table", reader=Table)
