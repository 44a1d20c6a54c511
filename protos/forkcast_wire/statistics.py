"""The statistics history: one row a step, in Parquet chunks and an open tail of JSON lines.

The monitor writes it; reports and replays read it. The schema is documented in log_schema.json.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.records import StepStats

TAIL = "tail.jsonl"
_LISTS = ("attention_entropy", "activation_mean", "activation_sd")
_INTS = ("epoch", "attempt", "rank", "step", "tokens")
_INDEX = ("index", "z", "u_volatility", "u_entropy", "u_disagreement")


def _type(name: str) -> pa.DataType:
    if name in _LISTS:
        return pa.list_(pa.float64())
    if name in _INTS:
        return pa.int64()
    if name == "group_grad_norms":
        return pa.map_(pa.string(), pa.float64())
    return {"run_uid": pa.string(), "skipped": pa.bool_()}.get(name, pa.float64())


SCHEMA = pa.schema(
    [(field.name, _type(field.name)) for field in fields(StepStats)]
    + [(name, pa.float64()) for name in _INDEX]
)


def chunk_name(epoch: int, attempt: int, first_step: int) -> str:
    """The file name of one chunk."""
    return f"e{epoch}-a{attempt}-{first_step:012d}.parquet"


def write_chunk(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write rows as one Parquet file, atomically."""
    first = rows[0]
    path = folder / chunk_name(first["epoch"], first["attempt"], first["step"])
    partial = path.with_suffix(".part")
    prepared = [
        {**row, "group_grad_norms": list((row.get("group_grad_norms") or {}).items())}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(prepared, SCHEMA), partial)
    partial.replace(path)
    return path


def read_tail(folder: Path) -> list[dict[str, Any]]:
    """The rows of the open tail; a last line that a crash cut short is left out."""
    path = folder / TAIL
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All rows in the order (epoch, step), each (epoch, step, rank) once: where a restarted trainer
    took a step again, the latest attempt's row stands.
    """
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            row["group_grad_norms"] = dict(row["group_grad_norms"] or [])
            found.append(row)
    found += read_tail(folder)
    for row in sorted(found, key=lambda one: one["attempt"]):
        rows[row["epoch"], row["step"], row["rank"]] = row
    return [rows[key] for key in sorted(rows)]


def row_to_stats(row: dict[str, Any]) -> StepStats:
    """The StepStats of a history row."""
    values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(StepStats)}
    for name in _LISTS:
        values[name] = tuple(values[name]) if values[name] else None
    values["group_grad_norms"] = values["group_grad_norms"] or {}
    for name in ("loss", "grad_norm", "grad_norm_clipped"):
        values[name] = float("nan") if values[name] is None else values[name]
    return StepStats(**values)
