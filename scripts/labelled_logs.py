"""Logs of real runs with labelled events, and how a detector is scored on them.

A folder holds labels.json and one CSV a log, gzipped or not; an empty cell was not measured. labels.json is
a list of objects:

- name, file; steps_per_row; true_events, minor_events: lists of [onset step, end step, ...];
- unstable_run: whether the run was unstable outside the events, too; low_resolution;
- one_rank: whether the losses are those of one rank; if absent or null, by the name.

The rules: only logs of one step a row are scored, from row 400 on. An event is caught if an alarm falls
between 5 rows before its onset and 25 rows after its end; its delay is the first such row less the
onset. Any other alarm is false, unless a minor event excuses it, and mutes the 50 rows after it. False
alarms count on logs without events whose run was stable.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from forkcast.records import FloatArray
from forkcast_cli.metrics import poisson_interval

Columns = dict[str, FloatArray]

_START: Final = 400
_BEFORE: Final = 5
_AFTER: Final = 25
_MUTE: Final = 50
_ONE_RANK: Final = ("modded_", "rwkv")


@dataclass(frozen=True, slots=True)
class Log:
    """A log's columns by name, [rows] each, and its labels."""

    name: str
    columns: Columns
    events: Sequence[tuple[int, int]]
    minor: Sequence[tuple[int, int]]
    stable: bool
    one_rank: bool


def read(folder: Path) -> Iterator[Log]:
    """The logs that can be scored. Raises OSError, and ValueError or KeyError for labels of another shape."""
    for label in json.loads((folder / "labels.json").read_text()):
        if label["steps_per_row"] != 1 or label.get("low_resolution"):
            continue
        yield _log(label, folder / label["file"])


def _log(label: Mapping[str, Any], path: Path) -> Log:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        names = file.readline().strip().split(",")
        rows = np.genfromtxt(file, delimiter=",", ndmin=2)
    events, minor = (
        [(int(one[0]), int(one[1])) for one in label.get(key) or []]
        for key in ("true_events", "minor_events")
    )
    one_rank = label.get("one_rank")
    return Log(
        name=label["name"],
        columns={name: rows[:, at] for at, name in enumerate(names)},
        events=events,
        minor=minor,
        stable=not label.get("unstable_run") and not events,
        one_rank=label["name"].startswith(_ONE_RANK) if one_rank is None else bool(one_rank),
    )


@dataclass(slots=True)
class Score:
    """events: how many there are. delays: rows, of those caught. false, rows: false alarms and scored rows of
    stable logs of the batch's mean loss, and of one rank's; of all others.
    """

    events: int = 0
    delays: list[int] = field(default_factory=list)
    false: int = 0
    rows: int = 0
    one_rank_false: int = 0
    one_rank_rows: int = 0
    other_false: int = 0
    other_rows: int = 0

    def add(self, log: Log, alarms: NDArray[np.bool_]) -> None:
        """Score one log. alarms: [rows]."""
        steps = log.columns["step"]
        hot = np.flatnonzero(alarms)
        hot = hot[hot >= _START]
        excused = np.zeros(len(steps), bool)
        for onset, first, last in _windows(steps, log.events):
            if onset < _START:
                continue
            excused[max(0, first) : last + 1] = True
            self.events += 1
            inside = hot[(hot >= first) & (hot <= last)]
            if len(inside):
                self.delays.append(int(inside[0]) - onset)
        for _, first, last in _windows(steps, log.minor):
            excused[max(0, first) : last + 1] = True
        false, rows = _false(hot, excused), max(0, len(steps) - _START)
        if not log.stable:
            self.other_false, self.other_rows = self.other_false + false, self.other_rows + rows
        elif log.one_rank:
            self.one_rank_false += false
            self.one_rank_rows += rows
        else:
            self.false, self.rows = self.false + false, self.rows + rows


def _windows(
    steps: FloatArray, events: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Of each event the row of its onset, and the first and the last row that count for it."""
    for onset, end in events:
        row = int(np.searchsorted(steps, onset))
        yield row, row - _BEFORE, int(np.searchsorted(steps, end)) + _AFTER


def _false(hot: NDArray[np.int64], excused: NDArray[np.bool_]) -> int:
    """How many alarms are false. Excused ones mute what follows them, too."""
    false, last = 0, -_MUTE
    for row in hot.tolist():
        if row - last >= _MUTE:
            last = row
            false += not excused[row]
    return false


def rate(number: int, rows: int) -> str:
    """Per 100,000 rows, with the exact Poisson interval of 95 %; "-" if there are no rows."""
    if not rows:
        return "-"
    low, high = poisson_interval(number)
    per = 1e5 / rows
    return f"{number * per:.1f} [{low * per:.1f}, {high * per:.1f}]"
