"""One run as the monitor knows it: history, detector, triggers, and where its epochs began."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from forkcast.records import WINDOW_COLUMNS, Index, StepStats, Trigger, Window
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.detector import Detector
from forkcast_monitor.history import History
from forkcast_wire import crash
from forkcast_wire.documents import dump, load
from forkcast_wire.statistics import read_history, row_to_stats

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Opening:
    """Where an epoch began: its first step in the lineage, and the step of the winner's base."""

    epoch: int
    start_step: int
    base_step: int


class WatchedRun:
    """Everything the monitor holds of one run. Thread-safe."""

    def __init__(
        self, config: DetectorConfig, run_uid: str, state_dir: Path, history: History
    ) -> None:
        self.config, self.run_uid, self._dir = config, run_uid, state_dir
        self.history = history
        self.lock = threading.RLock()
        self.new_trigger = threading.Condition(self.lock)
        (state_dir / "triggers").mkdir(parents=True, exist_ok=True)
        self.triggers = [
            load(Trigger, path.read_bytes())
            for path in sorted((state_dir / "triggers").glob("*.json"))
        ]
        self.total_steps = 0
        self._openings = self._read_openings()
        self._recent: deque[tuple[StepStats, Index]] = deque(maxlen=config.index.window)
        self.detector = Detector(config, run_uid)
        self.epoch, self.next_step = 0, 0
        if self.history.keys:
            self.epoch = max(key.epoch for key in self.history.keys)
            self._replay(self.epoch, None)

    # --------------------------------------------------------------------------------- attempts

    def hello(self, epoch: int, start_step: int, base_step: int, total_steps: int) -> int:
        """A trainer begins or reconnects; returns the first step wanted.

        Where it continues what is known, nothing happens. Where it starts again earlier, or in a
        new epoch, the detector becomes what it was at that point of the lineage.
        """
        with self.lock:
            self.total_steps = total_steps or self.total_steps
            known = epoch == self.epoch and start_step <= self.next_step and epoch in self._openings
            if epoch not in self._openings:
                self._openings[epoch] = Opening(epoch, start_step, base_step)
                self._write_openings()
            if not known or start_step < self.next_step:
                self.epoch = epoch
                self._replay(epoch, start_step)
            return self.next_step

    def _replay(self, epoch: int, before_step: int | None) -> None:
        """Fold the lineage's history again: earlier epochs up to where each was left."""
        self.detector = Detector(self.config, self.run_uid)
        self._recent.clear()
        self.next_step = before_step or 0
        for stats in self._lineage(epoch, before_step):
            opening = self._openings.get(stats.epoch)
            if stats.epoch and opening is not None and stats.step == opening.start_step:
                self._calm_after_collapse(opening)
            index, trigger = self.detector.fold(stats)
            self._recent.append((stats, index))
            self.next_step = stats.step + 1
            if trigger is not None:
                self._record(trigger)
        opening = self._openings.get(epoch)
        if epoch and opening is not None and (before_step or 0) <= opening.start_step:
            self._calm_after_collapse(opening)
            self.next_step = opening.start_step

    def _calm_after_collapse(self, opening: Opening) -> None:
        self.detector.triggers.quiet(opening.start_step + self.config.trigger.cooldown_steps)

    def _lineage(self, epoch: int, before_step: int | None) -> Iterator[StepStats]:
        limits: dict[int, int] = {epoch: before_step if before_step is not None else 1 << 62}
        for one in range(epoch, 0, -1):
            opening = self._openings.get(one)
            base = opening.base_step if opening else 0
            limits[one - 1] = min(base, limits[one]) if one != epoch else base
        for row in read_history(self.history.folder):
            if row["rank"] == 0 and row["step"] < limits.get(row["epoch"], 0):
                yield row_to_stats(row)

    # ------------------------------------------------------------------------------------- steps

    def accept(self, stats: StepStats) -> bool:
        """Fold one record; False where it was known already or belongs to another epoch."""
        with self.lock:
            if stats.key in self.history.keys:
                return False
            if stats.epoch != self.epoch or stats.rank or stats.step < self.next_step:
                return False
            index, trigger = self.detector.fold(stats)
            self.history.append(stats, index)
            self._recent.append((stats, index))
            self.next_step = stats.step + 1
            if trigger is not None:
                self._record(trigger)
            return True

    def _record(self, trigger: Trigger) -> None:
        """Make a trigger durable, once: the same one from a replay is the same file."""
        if any(known.id == trigger.id for known in self.triggers):
            return
        path = self._dir / "triggers" / f"{len(self.triggers) + 1:06d}.json"
        partial = path.with_suffix(".part")
        partial.write_bytes(dump(trigger))
        crash.reach("before-trigger")
        partial.replace(path)
        crash.reach("after-trigger")
        self.triggers.append(trigger)
        self.new_trigger.notify_all()
        _log.info("monitor.trigger", id=trigger.id, rule=trigger.rule.value, z=trigger.z)

    # ------------------------------------------------------------------------------------- views

    def window(self, steps: int) -> Window:
        """The last steps as columns."""
        with self.lock:
            rows = list(self._recent)[-(steps or self.config.index.window) :]
            columns = {
                name: np.array([_cell(name, s, i) for s, i in rows], dtype=np.float64)
                for name in WINDOW_COLUMNS
            }
            return Window(self.run_uid, self.epoch, self.total_steps, columns)

    def _read_openings(self) -> dict[int, Opening]:
        path = self._dir / "epochs.json"
        if not path.exists():
            return {}
        return {row[0]: Opening(*row) for row in json.loads(path.read_text())}

    def _write_openings(self) -> None:
        rows = [[o.epoch, o.start_step, o.base_step] for o in self._openings.values()]
        partial = self._dir / "epochs.part"
        partial.write_text(json.dumps(rows))
        partial.replace(self._dir / "epochs.json")


def _cell(name: str, stats: StepStats, index: Index) -> float:
    if name == "index_z":
        return index.z
    value = getattr(stats, name)
    if value is None:
        return float("nan")
    if isinstance(value, tuple):
        return sum(value) / len(value)
    return float(value)
