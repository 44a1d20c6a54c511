"""Our own history through the detector: a run's folder, its statistics, a chunk or the open tail of them.

Unlike anybody's log it holds all that the detector looks at, and the epochs of its lineage: a new epoch
begins from the detector as it was at the base of its collapse, as the monitor's does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forkcast.lineage import LineageEntry
from forkcast.lineage import limits as lineage_limits
from forkcast.records import StepStats
from forkcast_cli.detect.session import Session
from forkcast_cli.logs.base import LogError
from forkcast_wire.statistics import (
    ORIGINAL,
    HistoryError,
    former_tails,
    merged,
    read_history,
    read_lines,
    read_tail,
    row_to_stats,
    rows_of,
    sound,
    tail_of,
)

NAME: Final = "history of a Forkcast run"
_FIRST_LINE: Final = 1 << 16
#: Of the open tail's file; see `tail_of`.
_TAIL: Final = ".tail"


@dataclass(frozen=True, slots=True)
class History:
    """records: of rank 0, one a step, in the order (epoch, step). other_ranks: rows left out."""

    records: list[StepStats]
    other_ranks: int


def is_own(path: Path) -> bool:
    """Whether a folder or file is one of ours."""
    if path.is_dir():
        return _folder(path) is not None
    if path.suffix == ".parquet":
        return _is_chunk(path)
    if path.suffix == _TAIL:
        return bool(read_tail(path.with_suffix("")))
    with path.open("rb") as file:
        first = file.readline(_FIRST_LINE)
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and sound(row)


def read_own(path: Path) -> History:
    """The records of a folder or file of ours. Raises LogError, OSError."""
    try:
        if path.is_dir():
            rows = read_history(_folder(path) or path)
        elif path.suffix == ".parquet":
            rows = merged(rows_of(path, path.name))
        elif path.suffix == _TAIL:
            rows = merged(read_tail(path.with_suffix("")))
        else:
            rows = merged(row for row in read_lines(path) if sound(row))
    except HistoryError as error:
        raise LogError(str(error), "give an intact copy") from None
    records = [row_to_stats(row) for row in rows if row["rank"] == 0]
    if not records:
        raise LogError("holds no row of rank 0", "give the statistics of rank 0")
    return History(records, len(rows) - len(records))


def fold_own(session: Session, history: History, lineage: Sequence[LineageEntry]) -> None:
    """The records in order. Without a lineage record a new epoch starts afresh."""
    records = history.records
    session.format = NAME
    logged = session.begin("")
    epoch = records[0].epoch
    for stats in records:
        if stats.epoch != epoch:
            epoch = stats.epoch
            logged.collapse(stats.step, list(before(records, lineage, epoch)))
        session.report_all(logged, logged.fold(stats))


def before(
    records: Iterable[StepStats], lineage: Sequence[LineageEntry], epoch: int
) -> Iterator[StepStats]:
    """The records that the lineage of ``epoch`` rests on, before its own."""
    limits = lineage_limits(lineage, epoch)
    for stats in records:
        if stats.epoch < epoch and stats.step < limits.get(stats.epoch, 0):
            yield stats


def _folder(path: Path) -> Path | None:
    """The statistics of a run's folder, or of the folder itself."""
    for folder in (path / "statistics", path):
        tails = [tail_of(folder), *former_tails(folder)]
        chunks = folder.glob("e*-a*.parquet")
        if folder.is_dir() and (any(one.exists() for one in tails) or any(map(_is_chunk, chunks))):
            return folder
    return None


def _is_chunk(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return names.issuperset(ORIGINAL)
