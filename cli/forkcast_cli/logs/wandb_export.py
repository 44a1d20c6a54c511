"""A CSV export of a W&B panel: `"Step","run-a - train/loss","run-a - train/loss__MIN","run-a - ...__MAX"`,
three columns a run and metric. A long run is exported in bins: the mean of each, with its least and most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from forkcast_cli.logs.base import Row, TextFormat
from forkcast_cli.logs.delimited import Table

_BETWEEN: Final = " - "
_EXTREMES: Final = ("__MIN", "__MAX")


class _Export(Table):
    def __init__(self) -> None:
        super().__init__()
        self._is_export = False
        self._shared: dict[str, int] = {}
        self._runs: dict[str, dict[str, int]] = {}
        self._pairs: list[tuple[int, int]] = []
        self._rows = self._bins = 0

    def headed(self, header: Sequence[str]) -> None:
        places = {name: number for number, name in enumerate(header)}
        self._shared, self._runs = {}, {}
        for name, number in places.items():
            run, between, metric = name.rpartition(_BETWEEN)
            if not between:
                self._shared[name] = number
            elif not metric.endswith((*_EXTREMES, "__STEP")):
                self._runs.setdefault(run, {})[metric] = number
        self._pairs = [
            (number, places[name.removesuffix("__MIN") + "__MAX"])
            for name, number in places.items()
            if name.endswith("__MIN") and name.removesuffix("__MIN") + "__MAX" in places
        ]
        self._is_export = bool(self._runs) and bool(self._shared)

    def rows(self, line: str) -> Iterable[Row]:
        cells = self.cells(line)
        if not cells or not self._is_export:
            return
        self._rows += 1
        self._bins += any(cells[low] != cells[high] for low, high in self._pairs)
        shared = {name: cells[number] for name, number in self._shared.items() if cells[number]}
        for run, metrics in self._runs.items():
            values = {name: cells[number] for name, number in metrics.items() if cells[number]}
            if values:
                yield Row({**shared, **values}, run if len(self._runs) > 1 else "")

    def remarks(self) -> list[str]:
        bins = f"{self._bins:,} of {self._rows:,} rows are bins: W&B exported the mean of several steps"
        return [*([bins] if self._bins else []), *super().remarks()]


FORMAT: Final = TextFormat(name="W&B export", reader=_Export)
