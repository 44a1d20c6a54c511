"""TensorBoard: scalars by step, events as text; a file of its own, without TensorFlow."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path
from typing import Any, Final

from forkcast.records import Index, StepStats
from forkcast_watch.trackers import tensorboard_file as file
from forkcast_watch.trackers.base import Event, EventKey, Held, TrackedRun, figures
from forkcast_wire.appended import AppendedFile

_START: Final = 1
_DT_STRING: Final = 7
_EPOCH = "epoch"
_EVENTS, _TIER, _EVENT_EPOCH = "events", "event_tier", "event_epoch"


class TensorBoard:
    """``tensorboard:FOLDER``. Where steps come again, TensorBoard is told that a session starts there, and
    forgets what it had from that step on: it shows the run as it stands.
    """

    def __init__(self, target: str, run: TrackedRun) -> None:
        """Raises OSError where the folder cannot be written."""
        folder = Path(target or f"runs/{run.name}")
        mine = self._mine = sorted(folder.glob(f"events.out.tfevents.*.{run.uid}.*"))
        self._next: float = math.inf if mine else 0  # of what is there any step may come again
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{run.uid}"
        self._told: list[Event] = []
        self._path = folder / f"{name}.{len(mine)}"
        self._file = AppendedFile(self._path)
        self._file.create()
        self._write(file_version="brain.Event:2")
        self._empty = True

    def held(self) -> Held:
        """See `Tracker.held`."""
        return _held(self._mine)

    def step(self, stats: StepStats, index: Index | None) -> None:
        """One record with all figures."""
        if stats.step < self._next:
            self._write(stats.step, session_log={"status": _START})
            for event in self._told:  # what made a collapse go back stays in sight
                if event.step >= stats.step:
                    self._show(event)
        values = [{"tag": tag, "simple_value": v} for tag, v in figures(stats, index).items()]
        self._write(stats.step, summary={"value": values})
        self._next = stats.step + 1

    def event(self, event: Event) -> None:
        """Its tier as a scalar, the rest as text."""
        self._told.append(event)
        self._show(event)

    def close(self) -> None:
        """Close the file; one that nothing was written to is not left behind."""
        self._file.close()
        if self._empty:
            self._path.unlink(missing_ok=True)

    def _show(self, event: Event) -> None:
        text = f"tier {int(event.tier)}, since step {event.onset_step}: {event.cause}"
        tensor = {
            "dtype": _DT_STRING,
            "shape": {"dim": [{"size": 1}]},
            "string_val": [text.encode()],
        }
        shown = {"plugin_data": {"plugin_name": "text"}}
        values: list[dict[str, Any]] = [
            {"tag": _EVENT_EPOCH, "simple_value": event.epoch},
            {"tag": _TIER, "simple_value": int(event.tier)},
            {"tag": _EVENTS, "tensor": tensor, "metadata": shown},
        ]
        self._write(event.step, summary={"value": values})

    def _write(self, step: int = 0, **content: Any) -> None:
        self._empty = False
        self._file.append(file.record(file.Event(wall_time=time.time(), step=step, **content)))


def _held(paths: list[Path]) -> Held:
    newest: tuple[int, int] | None = None
    events: set[EventKey] = set()
    for path in paths:
        for one in file.read(path):
            found = {value.tag: value.simple_value for value in one.summary.value}
            if _TIER in found:
                events.add((int(found[_EVENT_EPOCH]), int(one.step), int(found[_TIER])))
            elif _EPOCH in found:
                place = int(found[_EPOCH]), int(one.step)
                newest = max(place, newest or place)
    return Held(newest, frozenset(events))
