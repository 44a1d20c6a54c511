"""Recorded columns through the detector, as the monitor would have judged them live."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from forkcast.records import Index, StepStats, Trigger
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.detector import Detector

#: Nobody measured a gradient norm: the volatility signal then goes by the loss alone.
_UNMEASURED = 0.0


def replay(
    columns: pa.Table | Mapping[str, Sequence[float]], config: DetectorConfig
) -> tuple[list[Index], list[Trigger]]:
    """One index a row, and the triggers.

    columns: ``step`` and ``loss`` (nats/token), where known ``grad_norm`` and ``validation_loss``
    (NaN = none taken), equally long. The rows are one lineage in order; a column of steps that
    counts rows of several steps each is fine, its gaps are then taken as recorded.
    Raises ValueError where a needed column is missing or the lengths differ.
    """
    detector = Detector(config, "replay")
    indices: list[Index] = []
    triggers: list[Trigger] = []
    for stats in records(columns):
        index, trigger = detector.fold(stats)
        indices.append(index)
        if trigger is not None:
            triggers.append(trigger)
    return indices, triggers


def read_columns(path: Path) -> pa.Table:
    """A CSV (plain or .gz) or Parquet file as a table. Raises OSError, pyarrow.ArrowInvalid."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    return pacsv.read_csv(path)


def records(columns: pa.Table | Mapping[str, Sequence[float]]) -> Iterator[StepStats]:
    """The rows as statistics of one rank. Raises ValueError."""
    if isinstance(columns, pa.Table):
        columns = {name: columns.column(name).to_pylist() for name in columns.column_names}
    missing = [name for name in ("step", "loss") if name not in columns]
    if missing or len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"replay: equally long columns step and loss are needed; {missing=}")
    norms, validations = columns.get("grad_norm"), columns.get("validation_loss")
    for row, step in enumerate(columns["step"]):
        norm = _UNMEASURED if norms is None else _number(norms[row])
        validation = math.nan if validations is None else _number(validations[row])
        yield StepStats(
            run_uid="replay",
            epoch=0,
            attempt=0,
            rank=0,
            step=int(step),
            loss=_number(columns["loss"][row]),
            grad_norm=norm,
            grad_norm_clipped=norm,
            learning_rate=0.0,
            tokens=0,
            validation_loss=None if math.isnan(validation) else validation,
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
