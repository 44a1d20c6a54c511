"""Training records: what a run looked like at a fork, what was done, and what came of it.

One row for each (fork, action, horizon); the control stands among them as the identity action.
Losses are validation losses in nats/token, NaN where a rollout diverged before the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.actions import Action
from forkcast.records import WINDOW_COLUMNS, FloatArray, Window
from forkcast_wire.files import replaced

_MEDIAN_STEPS = 20
_ACTION = {
    "learning_rate_scale": pa.float64(),
    "weight_decay_scale": pa.float64(),
    "clipping": pa.string(),
    "momentum_reset": pa.bool_(),
    "rewind_steps": pa.int64(),
    "data_reorder": pa.bool_(),
    "skip_batches": pa.int64(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a rollout showed ``horizon`` steps after the fork.

    loss, mean_loss: validation loss raw and with the mean of the last 25 weights. event: an
    instability event (SpikeScore rule, or divergence) between fork and horizon. recovery_steps:
    see the function of that name. steps_run: paid for, the replay included; 0 for the control.
    healthy: the run has neither stressor nor an excessive rate, and it did not diverge.
    """

    horizon: int
    loss: float
    mean_loss: float
    control_loss: float
    control_mean_loss: float
    diverged: bool
    event: bool
    control_event: bool
    recovery_steps: float
    steps_run: int
    healthy: bool


def recovery_steps(losses: Mapping[int, float], step: int, end: int, level: float) -> float:
    """Steps after a fork at ``step`` until the median of 20 losses in a row is at ``level``
    nats/token or below, counted to the first of the 20; 0 where the run never left it, end - step
    where it did not return. Only losses after the fork count: the 20 before it were calm.
    """
    for first in range(step, end - _MEDIAN_STEPS + 1):
        ahead = [losses.get(now, math.inf) for now in range(first, first + _MEDIAN_STEPS)]
        if float(np.median(ahead)) <= level:
            return float(first - step)
    return float(end - step)


_KINDS = {"int": pa.int64(), "bool": pa.bool_(), "float": pa.float64()}
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("regime", pa.string()),
        ("cause", pa.string()),
        ("fork_step", pa.int64()),
        ("total_steps", pa.int64()),
        *((f"window_{name}", pa.list_(pa.float64())) for name in WINDOW_COLUMNS),
        *_ACTION.items(),
        *((field.name, _KINDS[str(field.type)]) for field in fields(Outcome)),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A point of a run at which actions were tried. cause: ``trigger`` or ``drawn``."""

    run: str
    regime: str
    cause: str
    step: int
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row."""

    fork: Fork
    action: Action
    outcome: Outcome


def write(records: Sequence[Record], path: Path) -> None:
    """Write all records, atomically: a reader sees the old file or the new one."""
    table = pa.Table.from_pylist([_row(one) for one in records], SCHEMA)
    with replaced(path) as file:
        pq.write_table(table, file, compression="zstd")


def _row(record: Record) -> dict[str, Any]:
    fork = record.fork
    return {
        "run": fork.run,
        "regime": fork.regime,
        "cause": fork.cause,
        "fork_step": fork.step,
        "total_steps": fork.window.total_steps,
        **{f"window_{name}": fork.window.columns[name].tolist() for name in WINDOW_COLUMNS},
        **{name: getattr(record.action, name) for name in _ACTION},
        **{field.name: getattr(record.outcome, field.name) for field in fields(Outcome)},
    }


def read(path: Path) -> list[Record]:
    """All records of a file. Raises ValueError naming the columns that are missing."""
    table = pq.read_table(path)
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise ValueError(f"{path.name}: columns missing: {', '.join(missing)}")
    return list(_records(table.to_pylist()))


def _records(rows: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
    forks: dict[tuple[str, int], Fork] = {}
    for row in rows:
        key = row["run"], row["fork_step"]
        if key not in forks:
            forks[key] = Fork(
                run=row["run"],
                regime=row["regime"],
                cause=row["cause"],
                step=row["fork_step"],
                window=Window(row["run"], 0, row["total_steps"], _columns(row)),
            )
        yield Record(
            fork=forks[key],
            action=Action(**{name: row[name] for name in _ACTION}),
            outcome=Outcome(**{field.name: row[field.name] for field in fields(Outcome)}),
        )


def _columns(row: Mapping[str, Any]) -> dict[str, FloatArray]:
    return {name: np.array(row[f"window_{name}"], dtype=np.float64) for name in WINDOW_COLUMNS}
