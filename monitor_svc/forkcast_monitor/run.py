"""One run as the monitor knows it: history, detector, triggers, and where its epochs began."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import structlog

from forkcast.records import Event, StepStats, Trigger, Window, window_row
from forkcast_monitor.attempts import ALL, Attempt, Attempts
from forkcast_monitor.budget import RUN_DISK_BYTES, OverBudgetError
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.detector import Detector
from forkcast_monitor.found import Found, LastEvents, event_in, restored
from forkcast_monitor.history import History
from forkcast_monitor.snapshots import Snapshot, Snapshots
from forkcast_monitor.waiting import WaitingFile
from forkcast_wire import crash
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_from_wire, stats_to_wire
from forkcast_wire.documents import dump, load
from forkcast_wire.fields import MOST_STEPS
from forkcast_wire.files import replaced
from forkcast_wire.statistics import row_to_stats
from forkcast_wire.tail import Row, judged

_log = structlog.get_logger()
#: So many records may wait for a late one; then the late one is a gap.
REORDER_STEPS = 16
SNAPSHOT_STEPS = 500
#: Declared gaps ahead of what is judged; a trainer joins its own to so many.
MOST_GAPS = 256
#: Rises whenever Detector.state changes its meaning: older snapshots are then not used.
_STATE_FORMAT = 5


class Accepted(Enum):
    """What became of a record. DUPLICATE: known already, or of another rank or a replaced attempt."""

    FOLDED = "folded"
    WAITING = "waiting"
    RECORDED = "recorded"
    DUPLICATE = "duplicate"


class WatchedRun:
    """Everything the monitor holds of one run. Thread-safe."""

    def __init__(
        self, config: DetectorConfig, run_uid: str, state_dir: Path, history: History
    ) -> None:
        self.config, self.run_uid, self._dir = config, run_uid, state_dir
        self.history = history
        self.lock = threading.RLock()
        (state_dir / "triggers").mkdir(parents=True, exist_ok=True)
        self.triggers = [
            load(Trigger, path.read_bytes())
            for path in sorted((state_dir / "triggers").glob("*.json"))
        ]
        self._known_triggers = {one.id for one in self.triggers}
        self.total_steps, self.disk_bytes = 0, RUN_DISK_BYTES
        self._attempts = Attempts(state_dir / "attempts.json")
        # a snapshot of other signals is not used: the state is folded again from the history
        key = f"{_STATE_FORMAT} {sorted(config.preset.signals)} {config}"
        configuration = hashlib.sha256(key.encode()).hexdigest()
        self._snapshots = Snapshots(state_dir / "snapshots", configuration)
        self._recent: deque[array[float]] = deque(maxlen=config.signals.window)
        self._last: StepStats | None = None
        self.detector = Detector(config, run_uid)
        self.epoch, self.attempt, self.next_step = 0, 0, 0
        # not yet in the history, and what was found at these rows; empty between two calls
        self._folded: list[Row] = []
        self._finding: list[Found] = []
        self.found = LastEvents()
        self._waiting: dict[int, pb.StepStats] = {}
        self._lost: dict[int, int] = {}  # declared gaps ahead: first -> last step
        self._waiting_file = WaitingFile(state_dir)
        self._files = (history.file, self._waiting_file.file)
        if self._attempts.current is not None:
            self._restore(self._attempts.current, ALL, after_crash=True)
            self._wait_again()

    def _wait_again(self) -> None:
        """Take up what waited for a late record when the process died."""
        self._waiting = {
            one.step: one
            for one in self._waiting_file.found
            if (one.epoch, one.attempt) == (self.epoch, self.attempt) and one.step >= self.next_step
        }
        self._drain()

    # --------------------------------------------------------------------------------- attempts

    def hello(
        self, epoch: int, start_step: int, base_step: int, total_steps: int, attempt: int = 0
    ) -> int:
        """A trainer begins or reconnects; returns the first step wanted.

        An attempt that is known reconnects: nothing changes. A new one takes its first step again
        from its own state, so the detector becomes what it was before that step of the lineage.
        Raises StaleAttemptError if a later attempt is known; ImpossibleAttemptError,
        TooManyAttemptsError: see Attempts.add.
        """
        with self.lock:
            total_steps = total_steps or self.total_steps
            if start_step > (most := total_steps or MOST_STEPS) or most > MOST_STEPS:
                raise ValueError(f"start_step, total_steps: at most {min(most, MOST_STEPS)}")
            new = Attempt(epoch, attempt, start_step, base_step)
            first = self._attempts.current is None
            self._attempts.add(new)
            self.total_steps = total_steps
            if first or (epoch, attempt) != (self.epoch, self.attempt):
                # also where an earlier hello of this attempt failed after it was recorded
                goes_on = first or (epoch == self.epoch and start_step == self.next_step)
                if not goes_on or self._waiting:
                    self._forget_waiting()
                    self._restore(new, start_step, after_crash=False)
                self.epoch, self.attempt, self.next_step = epoch, attempt, start_step
            return self.next_step

    def _restore(self, at: Attempt, before_step: int, *, after_crash: bool) -> None:
        """Fold the lineage's history up to ``before_step`` of an epoch: earlier epochs up to where
        each was left, from the newest snapshot that is on it.

        The trigger of a row is durable before the next row is, so only that of the last row of a
        history can be missing after a crash; older ones stand in their files.
        """
        limits = self._attempts.limits(at.epoch)
        limits[at.epoch] = before_step
        snapshot = self._newest(limits)
        self.detector = Detector(self.config, self.run_uid)
        self._recent.clear()
        self._last = None
        epoch, step = (snapshot.epoch, snapshot.step) if snapshot else (0, 0)
        if snapshot:
            self.detector.restore(snapshot.detector)
            self.found.add(restored(self.run_uid, snapshot.found))
        width = self.config.signals.window
        first = {e: 0 if e > epoch else min(limits[e], ALL) - width for e in limits}
        first[epoch] = step - width if snapshot else 0
        rows = self._attempts.rows(self.history.folder, limits, first)
        self.next_step = max(step if epoch == at.epoch else 0, at.start_step)
        for row in rows:
            if (row["epoch"], row["step"]) < (epoch, step):
                self._note(row_to_stats(row), row["z"])
                continue
            self._enter(epoch, row["epoch"])
            epoch = row["epoch"]
            self._refold(row, record=after_crash and row is rows[-1])
        self._enter(epoch, at.epoch)
        self.epoch, self.attempt = at.epoch, at.attempt
        if rows and rows[-1]["epoch"] == at.epoch:
            self.next_step = max(self.next_step, rows[-1]["step"] + 1)

    def _refold(self, row: dict[str, Any], *, record: bool) -> None:
        stats = row_to_stats(row)
        reading = self.detector.fold(stats)
        self._note(stats, reading.index.z)
        if (event := event_in(reading)) is not None:
            self.found.add([Found(stats.attempt, event)])
        if reading.trigger is not None and record:
            self._record(reading.trigger)

    def _enter(self, before: int, epoch: int) -> None:
        """The silence of every epoch that begins between the two, under a preset that has it."""
        quiet = self.config.trigger.tiers.quiet_steps
        for opening in self._attempts.openings_between(before, epoch) if quiet else ():
            self.detector.triggers.departures.quiet(opening.start_step + quiet)

    def _newest(self, limits: dict[int, int]) -> Snapshot | None:
        for one in self._snapshots.newest_first():
            on_lineage = one.step <= limits.get(one.epoch, -1)
            if on_lineage and self._attempts.stands(one.epoch, one.attempt, one.step - 1):
                return one
        return None

    # ------------------------------------------------------------------------------------- steps

    def accept(self, stats: StepStats) -> Accepted:
        """As `accept_all`, of one record."""
        (accepted,) = self.accept_all([stats_to_wire(stats)])
        return accepted

    def accept_all(self, records: Sequence[pb.StepStats]) -> list[Accepted]:
        """Take records; they are durable when this returns, by one write. They may arrive out of order
        by at most REORDER_STEPS. Only rank 0 counts, whose loss is the mean over all ranks already.
        Raises OSError, OverBudgetError: not taken; ValueError for a record that no trainer makes, or
        of a step beyond the run's end: those before it are taken, none after it.
        """
        with self.lock:
            if self.history.size > self.disk_bytes:
                raise OverBudgetError("disk", f"the history holds {self.disk_bytes >> 20} MiB")
            try:
                return [self._accept(one, stats_from_wire(one)) for one in records]
            finally:
                self._write()

    def _accept(self, record: pb.StepStats, stats: StepStats) -> Accepted:
        if stats.step > (self.total_steps or MOST_STEPS):
            raise ValueError(f"step: the run has {self.total_steps} steps")
        if stats.rank or stats.run_uid != self.run_uid:
            return Accepted.DUPLICATE
        if stats.epoch != self.epoch or stats.attempt != self.attempt:
            return self._record_left_behind(record)
        if stats.step < self.next_step or stats.step in self._waiting:
            return Accepted.DUPLICATE
        if stats.step > self._skip_lost():
            self._waiting_file.append(record)
            self._waiting[stats.step] = stats_to_wire(stats)  # a copy: the record keeps its batch
            self._drain()
            folded = stats.step not in self._waiting
            return Accepted.FOLDED if folded else Accepted.WAITING
        self._fold(record, stats)
        self._drain()
        return Accepted.FOLDED

    def _record_left_behind(self, record: pb.StepStats) -> Accepted:
        """A record of an earlier epoch, beyond where the lineage left it, is kept for the reports;
        no detector sees it.
        """
        key = (record.epoch, record.attempt)
        behind = (
            self._attempts.known(*key)
            and record.epoch < self.epoch
            and record.step >= self._attempts.limit(self.epoch, record.epoch)
        )
        if not behind or record.step <= self.history.last_steps.get(key, -1):
            return Accepted.DUPLICATE
        self._write()
        self.history.append([Row(record)])
        return Accepted.RECORDED

    def lost(self, gaps: Sequence[tuple[int, int]]) -> None:
        """The trainer says that these steps, first to last of each gap, never come. Raises
        ValueError if one of them cannot be, OverBudgetError if too many wait; then nothing has
        changed.
        """
        with self.lock:
            most = self.total_steps or MOST_STEPS
            if any(not first <= last <= most for first, last in gaps):
                raise ValueError(f"gaps: first_step <= last_step <= {most}")
            lost = dict(self._lost)
            for first, last in gaps:
                if last >= self.next_step:
                    begins = max(first, self.next_step)
                    lost[begins] = max(last, lost.get(begins, last))
            if len(lost) > MOST_GAPS:
                raise OverBudgetError("gaps", f"{MOST_GAPS} declared gaps lie ahead")
            self._lost = lost
            self._drain()

    def _skip_lost(self) -> int:
        while self.next_step in self._lost:
            self.next_step = self._lost.pop(self.next_step) + 1
        return self.next_step

    def _drain(self) -> None:
        """Fold what is in order now; where too much waits, what it waits for is a gap."""
        while self._waiting:
            record = self._waiting.get(self._skip_lost())
            if record is not None:
                self._fold(record, stats_from_wire(record))
                self._write()  # it is acknowledged already: only what is written may be let go
                del self._waiting[record.step]
            elif len(self._waiting) > REORDER_STEPS:
                self.next_step = min(self._waiting)
                self._lost = {a: b for a, b in self._lost.items() if b >= self.next_step}
            else:
                return
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_file.clear()

    def _fold(self, record: pb.StepStats, stats: StepStats) -> None:
        """Judge a step; its row waits for `_write`, and so do those who follow the run. A trigger is durable
        before the next row is, and a snapshot after its rows.
        """
        reading = self.detector.fold(stats)
        index, event, trigger = reading.index, reading.event, reading.trigger
        self._folded.append(judged(record, index, event))
        self._note(stats, index.z)
        self.next_step = stats.step + 1
        if event is not None:
            self._tell(event)
        if (told := event_in(reading)) is not None:
            self._finding.append(Found(stats.attempt, told))
        if trigger is not None:
            self._write()
            self._record(trigger)
        if self.next_step % SNAPSHOT_STEPS == 0:
            self._write()
            self.snapshot()

    def _write(self) -> None:
        """Append the rows that were folded since the last time. Raises OSError."""
        rows, self._folded = self._folded, []
        found, self._finding = self._finding, []
        if not rows:
            return
        try:
            self.history.append(rows)
        except OSError as error:
            # the detector is ahead of the record now: back to what is on disk
            _log.error("monitor.history_not_written", run=self.run_uid, error=str(error))
            current = self._attempts.current
            if current is not None:
                self._restore(current, rows[0].stats.step, after_crash=False)
            raise
        self.found.add(found)

    def snapshot(self) -> None:
        """Save the detector as it stands."""
        with self.lock:
            state, found = self.detector.state(), self.found.state()
            self._snapshots.save(Snapshot(self.epoch, self.attempt, self.next_step, state, found))

    def close(self) -> None:
        """Close the history into Parquet, with a snapshot at its end."""
        with self.lock:
            if self.detector.last is not None:
                self.snapshot()
            self.history.close()
            self._waiting_file.file.rest()

    def sync(self) -> None:
        """Wait until all that was accepted is on the disk. Raises OSError."""
        with self.lock:
            for file in self._files:
                file.sync()

    @property
    def unsynced(self) -> bool:
        """Whether something that was accepted may be lost with the machine."""
        return any(file.unsynced for file in self._files)

    def rest(self) -> None:
        """Hold no file descriptors until the next record. Raises OSError."""
        with self.lock:
            for file in self._files:
                file.rest()

    def abandon(self) -> None:
        """Close the files as they are: the run is about to be deleted."""
        with self.lock:
            for file in self._files:
                file.abandon()

    def syncs_within(self, records: int) -> bool:
        """Whether taking so many records may wait for the disk, and not only hand lines to the
        operating system.
        """
        with self.lock:
            to_snapshot = SNAPSHOT_STEPS - self.next_step % SNAPSHOT_STEPS
            return bool(
                records >= min(to_snapshot, self.history.rows_to_chunk)
                or self._waiting
                or self._lost
            )

    @property
    def waiting(self) -> int:
        """Records that wait for a late one."""
        return len(self._waiting)

    def last(self) -> StepStats | None:
        """The last judged record."""
        return self._last

    def _note(self, stats: StepStats, z: float) -> None:
        """Keep a judged step for the window."""
        self._recent.append(window_row(stats, z))
        self._last = stats

    def _tell(self, event: Event) -> None:
        """An event in the log; its row is written with the batch."""
        _log.warning(
            "run.event",
            run=self.run_uid,
            step=event.step,
            onset=event.onset_step,
            tier=event.tier.name.capitalize(),
            cause=event.cause,
        )

    def _record(self, trigger: Trigger) -> None:
        """Make a trigger durable, once: the same one from a replay is the same file."""
        if trigger.id in self._known_triggers:
            return
        path = self._dir / "triggers" / f"{len(self.triggers) + 1:06d}.json"
        with replaced(path) as file:
            file.write(dump(trigger))
            crash.reach("before-trigger")
        crash.reach("after-trigger")
        self.triggers.append(trigger)
        self._known_triggers.add(trigger.id)

    # ------------------------------------------------------------------------------------- views

    def window(self, steps: int) -> Window:
        """The last steps as columns."""
        with self.lock:
            rows = list(self._recent)[-(steps or self.config.signals.window) :]
            return Window.of(self.run_uid, self.epoch, self.total_steps, rows)
