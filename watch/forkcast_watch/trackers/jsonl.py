"""JSON lines: one row a step with the columns of docs/statistics.md, and ``{"event": ...}`` for an event."""

from __future__ import annotations

import json
from pathlib import Path

from forkcast.records import Index, StepStats
from forkcast_watch.trackers.base import Event, EventKey, Held, TrackedRun, index_columns
from forkcast_wire.appended import AppendedFile
from forkcast_wire.statistics import read_lines, stats_row


class Jsonl:
    """``jsonl:FILE``. A NaN is ``NaN`` and an infinity ``Infinity``, as Python's json reads them."""

    def __init__(self, target: str, run: TrackedRun) -> None:
        """Raises OSError where the file cannot be written."""
        path = Path(target or f"{run.name}.jsonl")
        self._path, self._uid = path, run.uid
        self._file = AppendedFile(path)
        self._file.create()

    def held(self) -> Held:
        """See `Tracker.held`."""
        return _held(self._path, self._uid) if self._path.is_file() else Held()

    def step(self, stats: StepStats, index: Index | None) -> None:
        """One line."""
        self._write(stats_row(stats) | index_columns(index))

    def event(self, event: Event) -> None:
        """One line."""
        self._write(
            {
                "event": {
                    "run_uid": event.run_uid,
                    "epoch": event.epoch,
                    "step": event.step,
                    "onset_step": event.onset_step,
                    "tier": int(event.tier),
                    "component": event.component,
                    "cause": event.cause,
                }
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, document: dict[str, object]) -> None:
        self._file.append(json.dumps(document).encode() + b"\n")


def _held(path: Path, run_uid: str) -> Held:
    newest: tuple[int, int] | None = None
    events: set[EventKey] = set()
    for line in read_lines(path):
        told = line.get("event")
        row = told if isinstance(told, dict) else line
        if row.get("run_uid") != run_uid:
            continue
        try:
            place = int(row["epoch"]), int(row["step"])
            if row is told:
                events.add((*place, int(row["tier"])))
            else:
                newest = max(place, newest or place)
        except (KeyError, TypeError, ValueError):
            continue  # not ours
    return Held(newest, frozenset(events))
