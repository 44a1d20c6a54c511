"""The statistics history: one row a step, in Parquet chunks and an open tail.

The monitor writes it; reports and replays read it. The schema is documented in log_schema.json, the
tail's format in `forkcast_wire.tail`; the tail of earlier versions, JSON lines, is read too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.records import StepStats
from forkcast_wire import tail
from forkcast_wire.codec import stats_from_wire, stats_to_wire
from forkcast_wire.echo import first_line
from forkcast_wire.fields import MOST_EPOCHS, MOST_STEPS
from forkcast_wire.files import replaced

_COLUMNS = tuple(field.name for field in fields(StepStats))
_LISTS = ("attention_entropy", "activation_mean", "activation_sd")
_INTS = ("epoch", "attempt", "rank", "step", "tokens")
_INDEX = ("index", "z")
#: How the columns of the index's components begin, one a signal: their names are the signals'.
COMPONENT = "u_"
#: Chunks of earlier versions lack them: their rows have null there.
_LATER = {"tier": pa.int8(), "event": pa.string(), "onset_step": pa.int64()}


def _type(name: str) -> pa.DataType:
    if name in _LISTS:
        return pa.list_(pa.float64())
    if name in _INTS:
        return pa.int64()
    if name == "group_grad_norms":
        return pa.map_(pa.string(), pa.float64())
    return {"run_uid": pa.string(), "skipped": pa.bool_()}.get(name, pa.float64())


#: The columns of every row; those of the components come after them.
SCHEMA = pa.schema(
    [(field.name, _type(field.name)) for field in fields(StepStats)]
    + [(name, pa.float64()) for name in _INDEX]
    + list(_LATER.items())
)


#: Those that a chunk of any version has.
ORIGINAL = frozenset(SCHEMA.names) - _LATER.keys()


class HistoryError(ValueError):
    """A chunk of a history is damaged, or is none."""


def chunk_name(epoch: int, attempt: int, first_step: int) -> str:
    """The file name of one chunk."""
    return f"e{epoch}-a{attempt}-{first_step:012d}.parquet"


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table: the columns of SCHEMA, and those of their components."""
    return _table(_columns(rows))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = [*SCHEMA.names, *(COMPONENT + name for name in components(rows))]
    return {name: [row.get(name) for row in rows] for name in names}


def _table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    named = {name: pa.float64() for name in columns if name.startswith(COMPONENT)}
    schema = pa.schema([*SCHEMA, *named.items()])
    groups = [list((one or {}).items()) for one in columns["group_grad_norms"]]
    given = {**columns, "group_grad_norms": groups}
    arrays = [pa.array(given[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_chunk(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """As `write_columns`, from rows."""
    return write_columns(_columns(rows), folder)


def write_columns(columns: Mapping[str, Sequence[Any]], folder: Path) -> Path:
    """Write rows of one (epoch, attempt), as columns, as one Parquet file, atomically. One that is
    there already, from before a crash, keeps its rows: what is left of a damaged tail may begin at the
    same step and hold fewer. Raises HistoryError if it cannot be read; OSError.
    """
    epoch, attempt, step = (columns[name][0] for name in ("epoch", "attempt", "step"))
    path = folder / chunk_name(epoch, attempt, step)
    if path.exists():
        columns = _columns(merged([*rows_of(path, str(path)), *tail.rows_of_columns(columns)]))
    with replaced(path) as file:
        pq.write_table(_table(columns), file)
    return path


def stats_row(stats: StepStats) -> dict[str, Any]:
    """The columns of one record, JSON-ready."""
    row = {name: getattr(stats, name) for name in _COLUMNS}
    row["group_grad_norms"] = dict(stats.group_grad_norms)
    return row


def components(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The signals that have a column in any of the rows, in the order of their first one."""
    names = {name: None for row in rows for name in row if name.startswith(COMPONENT)}
    return [name.removeprefix(COMPONENT) for name in names]


def components_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What the signals said at a row, by name; of those that said nothing none."""
    found = {name: row.get(COMPONENT + name) for name in components([row])}
    return {name: value for name, value in found.items() if value is not None}


def tail_of(folder: Path) -> Path:
    """The open tail of a history: beside its folder, which holds Parquet files alone."""
    return folder.with_name(f"{folder.name}.tail")


def former_tails(folder: Path) -> list[Path]:
    """Those that earlier versions wrote, JSON lines, if they are there."""
    paths = (folder / "tail.jsonl", folder.with_name(f"{folder.name}.tail.jsonl"))
    return [path for path in paths if path.exists()]


def read_tail(folder: Path) -> list[dict[str, Any]]:
    """The rows of the open tail; what a crash cut short, or cannot be a row, is left out."""
    return [*read_former_tails(folder), *tail.rows_of_columns(tail_columns(folder))]


def tail_columns(folder: Path) -> dict[str, list[Any]]:
    """The rows of the open tail as columns; see `forkcast_wire.tail.columns`."""
    path = tail_of(folder)
    frames, _ = tail.decoded(path.read_bytes() if path.exists() else b"")
    return tail.columns(frames, COMPONENT)


def read_former_tails(folder: Path) -> list[dict[str, Any]]:
    """The rows of the tails that earlier versions wrote; lines that cannot be a row are left out."""
    return [row for path in former_tails(folder) for row in read_lines(path) if sound(row)]


def sound(row: Mapping[str, Any]) -> bool:
    """Whether a row can be one of a history: it is of a step, and every other value is of its column's
    type, or absent.
    """
    return _of_a_step(row) and all(_fits(name, value) for name, value in row.items())


def _of_a_step(row: Mapping[str, Any]) -> bool:
    """Whether its integers are there, and fit the columns."""
    values = [row.get(name) for name in _INTS]
    return (
        isinstance(row.get("run_uid"), str)
        and all(type(one) is int and 0 <= one < 1 << 53 for one in values)
        and row["epoch"] <= MOST_EPOCHS
        and row["step"] <= MOST_STEPS
    )


def _fits(name: str, value: object) -> bool:
    """Whether the value can stand in the column of that name; columns of later versions may."""
    if value is None or name == "run_uid" or name in _INTS:
        return True
    if name in _LISTS:
        return isinstance(value, list) and all(map(_number, value))
    if name == "group_grad_norms":
        pairs = value.items() if isinstance(value, dict) else value
        return isinstance(pairs, Iterable) and all(
            isinstance(pair, tuple) and isinstance(pair[0], str) and _number(pair[1])
            for pair in pairs
        )
    if name == "skipped":
        return isinstance(value, bool)
    if name == "event":
        return isinstance(value, str)
    if name == "tier":
        return type(value) is int and -128 <= value <= 127
    if name == "onset_step":
        return type(value) is int and 0 <= value <= MOST_STEPS
    known = name in SCHEMA.names or name.startswith(COMPONENT)
    return not known or _number(value)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines that are none are left out."""
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_history(
    folder: Path, first_steps: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """All rows in the order (epoch, step), each (epoch, step, rank) once. Where a restarted trainer
    took steps again, the later attempt replaces the earlier one from its first row on.

    first_steps: by epoch, the first step wanted; epochs that are not in it are left out. Chunks
    before it are not opened. Raises HistoryError if one is damaged.
    """
    found: list[dict[str, Any]] = []
    for path in _chunks(folder, first_steps):
        found += rows_of(path, str(path))
    found += read_tail(folder)
    return merged(found, first_steps)


def merged(
    found: Iterable[dict[str, Any]], first_steps: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """Rows in the order (epoch, step), each (epoch, step, rank) once; see `read_history`."""
    found = list(found)
    begins: dict[tuple[int, int, int], int] = {}
    for row in found:
        key = (row["epoch"], row["rank"], row["attempt"])
        begins[key] = min(row["step"], begins.get(key, row["step"]))
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in found:
        if first_steps is not None and row["step"] < first_steps.get(row["epoch"], 1 << 62):
            continue
        later = (
            step
            for (epoch, rank, attempt), step in begins.items()
            if (epoch, rank) == (row["epoch"], row["rank"]) and attempt > row["attempt"]
        )
        if row["step"] < min(later, default=1 << 62):
            rows[row["epoch"], row["step"], row["rank"]] = row
    return [rows[key] for key in sorted(rows)]


def rows_of(source: Path | BinaryIO, path: str) -> list[dict[str, Any]]:
    """The rows of one chunk; path: what an error names. Raises HistoryError."""
    try:
        # without Arrow's threads: one that lets go of a file of Python's while the interpreter ends
        # aborts the process ("terminate called without an active exception")
        with pq.ParquetFile(source, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        for field in SCHEMA:
            there = [
                table.schema.field(at) for at in table.schema.get_all_field_indices(field.name)
            ]
            if there != [field] and (there or field.name not in _LATER):
                raise HistoryError(f"{path}: no chunk of a history: column {field.name}")
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = first_line(error)
        raise HistoryError(f"{path}: damaged: {first}") from error
    for row in rows:
        if not _of_a_step(row):
            raise HistoryError(f"{path}: damaged: a row is of no step")
        row["group_grad_norms"] = dict(row["group_grad_norms"] or [])
        for name in _LATER:
            row.setdefault(name, None)
    return rows


_CHUNK = re.compile(r"e(\d{1,20})-a(\d{1,20})-(\d{1,20})\.parquet")


def _chunks(folder: Path, first_steps: Mapping[int, int] | None) -> list[Path]:
    """The Parquet files that may hold wanted rows: a chunk ends where the next of its attempt
    begins.
    """
    named = [
        (tuple(int(part) for part in match.groups()), path)
        for path in folder.glob("*.parquet")
        if (match := _CHUNK.fullmatch(path.name)) and int(match[1]) <= MOST_EPOCHS
    ]
    named.sort()
    if first_steps is None or not named:
        return [path for _, path in named]
    wanted = []
    for (key, path), following in zip(named, [*named[1:], None], strict=False):
        ends = following[0][2] if following and following[0][:2] == key[:2] else 1 << 62
        if key[0] in first_steps and ends > first_steps[key[0]]:
            wanted.append(path)
    return wanted


def last_steps(folder: Path) -> dict[tuple[int, int], int]:
    """By (epoch, attempt), the last step in the chunks; only their footers are read. Raises
    HistoryError.
    """
    last: dict[tuple[int, int], int] = {}
    for path in _chunks(folder, None):
        match = _CHUNK.fullmatch(path.name)
        assert match is not None
        key = (int(match[1]), int(match[2]))
        try:
            footer = pq.read_metadata(path)
            column = footer.schema.names.index("step")
            groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
            steps = [int(group.column(column).statistics.max) for group in groups]
        except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
            first = first_line(error)
            raise HistoryError(f"{path}: damaged: {first}") from error
        last[key] = max([*steps, last.get(key, -1)])
    return last


def newest_steps(folder: Path) -> dict[int, int]:
    """By epoch, the newest step on record, chunks and tail."""
    newest: dict[int, int] = {}
    for (epoch, _), step in last_steps(folder).items():
        newest[epoch] = max(step, newest.get(epoch, step))
    for row in read_tail(folder):
        newest[row["epoch"]] = max(row["step"], newest.get(row["epoch"], row["step"]))
    return newest


def recorded(row: dict[str, Any]) -> tail.Row | None:
    """A row of a former tail as one of the tail today; None for one that no trainer makes."""
    try:
        stats = stats_to_wire(row_to_stats(row))
        stats_from_wire(stats)  # its bounds
    except (TypeError, ValueError):
        return None
    return tail.Row(stats, row.get("index") or 0.0, row.get("z") or 0.0, components_of(row))


def row_to_stats(row: dict[str, Any]) -> StepStats:
    """The StepStats of a history row."""
    values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(StepStats)}
    for name in _LISTS:
        values[name] = tuple(values[name]) if values[name] else None
    values["group_grad_norms"] = values["group_grad_norms"] or {}
    for name in ("loss", "grad_norm", "grad_norm_clipped"):
        values[name] = float("nan") if values[name] is None else values[name]
    return StepStats(**values)
