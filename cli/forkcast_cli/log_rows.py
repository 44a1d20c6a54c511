"""Rows of a log as records of steps. A log may be anybody's: nothing in a row is trusted. Pure.

A row of our own carries `run_uid` and whole numbers for `epoch` and `attempt`; there, `epoch` is the
lineage's. Anywhere else a column of that name is the data's epoch, mostly a fraction, and says
nothing here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from forkcast.records import StepStats
from forkcast_wire.fields import MOST_STEPS

NEEDED: Final = ("step", "loss", "grad_norm")
_LISTS: Final = ("attention_entropy", "activation_mean", "activation_sd")
_WHOLE: Final = ("epoch", "attempt", "rank", "step", "tokens")
_OTHER: Final = ("run_uid", "skipped", "group_grad_norms")
_NUMBERS: Final = tuple(
    field.name for field in fields(StepStats) if field.name not in (*_LISTS, *_WHOLE, *_OTHER)
)
#: Where a row is in its file, e.g. "line 7", and what it holds.
Placed: TypeAlias = tuple[str, Any]


class LogError(ValueError):
    """A log that cannot be read, in one line: where, what, and the remedy."""


@dataclass(frozen=True, slots=True)
class Log:
    """records: one a step, in the order (epoch, step). notes: what was left out or put in order."""

    records: list[StepStats]
    notes: tuple[str, ...]


def parse(data: bytes) -> tuple[list[Placed], tuple[str, ...]]:
    """The rows of JSON lines, of a JSON array, or of a Trainer's state (`log_history`), and what is
    to be said about them. A last line that is cut short is left out. Raises LogError.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LogError(f"byte {error.start}: is not UTF-8; give Parquet or JSON lines") from None
    found = _whole(text)
    if found is not None:
        return [(f"row {number}", row) for number, row in enumerate(found, 1)], (
            "the file is one JSON document, not JSON lines: its entries were taken as rows",
        )
    rows: list[Placed] = []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            rows.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            if (number, line) == lines[-1] and not text.endswith("\n"):
                return rows, (f"line {number} is cut short: left out",)
            why = str(error).splitlines()[0].split(";")[0]  # "; use sys.set_int_max_str_digits()"
            raise LogError(f"line {number}: is not JSON ({why}); correct or delete it") from None
    return rows, ()


def _whole(text: str) -> list[Any] | None:
    """The rows of a file that is one JSON document; None if it is not."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict):
        document = document.get("log_history")
    return document if isinstance(document, list) else None


def read(rows: Iterable[Placed]) -> Log:
    """The records of rank 0. A row without loss or gradient norm is left out; a step that comes
    again replaces the earlier one and what followed it. Raises LogError naming row and column.
    """
    kept: dict[int, dict[int, StepStats]] = {}
    counts: Counter[str] = Counter()
    last = (-1, -1)
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise LogError(f"{place}: is no object with columns; give one a step")
        missing = [name for name in NEEDED if row.get(name) is None]
        if "step" in missing or len(missing) > 1 or (missing and not _ours(row)):
            counts[f"without {missing[0]}"] += 1
            continue
        if _rank(row, place):
            counts["of another rank"] += 1
            continue
        stats = _stats(row, place)
        steps = kept.setdefault(stats.epoch, {})
        if stats.step in steps:  # taken again, after a restart or by a second writer
            for later in [step for step in steps if step >= stats.step]:
                del steps[later]
                counts["replaced by a later one"] += 1
        elif (stats.epoch, stats.step) < last:
            counts["out of order"] += 1
        steps[stats.step] = stats
        last = (stats.epoch, stats.step)
    records = [kept[epoch][step] for epoch in sorted(kept) for step in sorted(kept[epoch])]
    if not records:
        raise LogError(_nothing(counts))
    return Log(records, tuple(_notes(counts)))


def _notes(counts: Mapping[str, int]) -> Iterator[str]:
    for what, count in counts.items():
        rows = "1 row" if count == 1 else f"{count:,} rows"
        yield f"{rows} {what}: " + ("sorted" if what == "out of order" else "left out")


def _nothing(counts: Mapping[str, int]) -> str:
    if not counts:
        return "holds no statistics; give the folder of a run"
    if set(counts) == {"of another rank"}:
        return "holds no row of rank 0; give the statistics of rank 0"
    return f"needs the columns {', '.join(NEEDED)}; rename the file's columns"


def _ours(row: Mapping[str, Any]) -> bool:
    """Whether the row is one of our own histories: there a loss that is null was not finite."""
    whole = all(type(row.get(name)) is int for name in ("epoch", "attempt"))
    return whole and isinstance(row.get("run_uid"), str)


def _rank(row: Mapping[str, Any], place: str) -> int:
    return 0 if row.get("rank") is None else _integer(row["rank"], "rank", place)


def _stats(row: Mapping[str, Any], place: str) -> StepStats:
    ours = _ours(row)
    numbers = {name: _number(row.get(name), name, place) for name in _NUMBERS}
    clipped = numbers["grad_norm_clipped"]
    needed = {
        "loss": _or_nan(numbers["loss"]),
        "grad_norm": _or_nan(numbers["grad_norm"]),
        "grad_norm_clipped": _or_nan(numbers["grad_norm"] if clipped is None else clipped),
        "learning_rate": numbers["learning_rate"] or 0.0,
    }
    groups = row.get("group_grad_norms") or {}
    try:
        groups = {str(name): float(value) for name, value in dict(groups).items()}
    except (TypeError, ValueError):
        raise _wrong(place, "group_grad_norms", groups, "numbers by name") from None
    values: dict[str, Any] = {
        **numbers,
        **needed,
        **{name: _numbers(row.get(name), name, place) for name in _LISTS},
        "run_uid": row["run_uid"] if ours else "replay",
        "epoch": _integer(row["epoch"], "epoch", place) if ours else 0,
        "attempt": _integer(row["attempt"], "attempt", place) if ours else 0,
        "rank": 0,
        "step": _integer(row["step"], "step", place),
        "tokens": _integer(row["tokens"], "tokens", place) if row.get("tokens") else 0,
        "skipped": row.get("skipped") is True,
        "group_grad_norms": groups,
    }
    return StepStats(**values)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: object, column: str, place: str) -> float | None:
    """A number, or a text that is one ("NaN" and "Infinity" are); None for none."""
    if value is None:
        return None
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _wrong(place, column, value, "a number")


def _integer(value: object, column: str, place: str) -> int:
    number = _number(value, column, place)
    most = MOST_STEPS if column == "step" else 1 << 53
    if number is None or not math.isfinite(number) or number != int(number):
        raise _wrong(place, column, value, "a whole number")
    if not 0 <= number <= most:
        raise _wrong(place, column, value, f"from 0 to {most:,}")
    return int(number)


def _numbers(value: object, column: str, place: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise _wrong(place, column, value, "a list of numbers")
    return tuple(_or_nan(_number(one, column, place)) for one in value) or None


def _wrong(place: str, column: str, value: object, wanted: str) -> LogError:
    return LogError(f"{place}, column {column}: {str(value)[:60]!r} is not {wanted}; correct it")
