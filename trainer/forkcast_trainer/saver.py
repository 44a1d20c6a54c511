"""Saves in the background: one state is written while one more waits, and the step waits for neither."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from torch import Tensor

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, StepStats
from forkcast.retention import is_log_spaced
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import Snapshot
from forkcast_trainer.journal import Journal
from forkcast_trainer.staging import BUFFERS, Staged, Staging, on_the_host
from forkcast_trainer.uploading import Uploads
from forkcast_wire import catalogue, completion, keys
from forkcast_wire.documents import Complete, HistoryGap, dump, read_manifest
from forkcast_wire.manifest import Checkpoint, Storage
from forkcast_wire.store import AlreadyExists, StoreError, StoreRefused, StoreUnavailable

_log = structlog.get_logger()
#: Finite, unskipped steps after which a state counts as good.
GOOD_AFTER_STEPS = 25
#: After a failed save the next copy is taken no sooner, seconds: a copy costs the step time. It
#: doubles with each failure in a row.
_RETRY_SECONDS, _MOST_RETRY_SECONDS = 2.0, 30.0
#: Between two sweeps of the store: three listings each.
_SWEEP_SECONDS = 6 * 3600.0
#: So many saves in a row are held back because the rows before them could not be written. A state is
#: worth more than its history: the next is published without them, and says so.
MOST_HELD_BACK = 3


@dataclass(frozen=True)
class _Save:
    snapshot: Snapshot
    kind: StateKind
    last: bool


@dataclass(frozen=True)
class _Mark:
    ref: StateRef


@dataclass(frozen=True)
class _Adopted:
    entry: LineageEntry
    attempt: int


class _Chunk:
    """A chunk of the history is due, whatever is saved."""


class _Start:
    """The process that encodes is due."""


class Saver:
    """Owns the writing thread of rank 0. ``error`` says why the last save failed, '' if it did not;
    ``gap`` what the history lacks of the steps before the newest state, '' if nothing; ``end_error``
    why the run's end could not be recorded; ``skipped`` how many saves were due and never made, since
    those before them took too long or failed.
    """

    def __init__(
        self,
        store: Store,
        workdir: Path,
        rules: Checkpoint,
        *,
        staging: Staging | None = None,
        storage: Storage | None = None,
    ) -> None:
        """staging: of the device whose state is saved, None for copies in memory of their own.
        storage: the store as the manifest has it, for the process that encodes; None for none: then
        the thread does it.
        """
        self._store, self._rules = store, rules
        self._staging, self.skipped = staging, 0
        self._journal = Journal(store)
        self._scratch = workdir / "scratch"
        self._uploads = Uploads(storage, workdir, self._scratch)
        checkpoint.sweep(self._scratch)
        self._queue: queue.SimpleQueue[
            _Save | _Mark | _Adopted | _Chunk | _Start | Complete | None
        ] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending, self._settled = 0, threading.Condition(self._lock)
        self._failed: set[StateKind] = set()
        self._not_before = self._sweep_at = 0.0
        self._unhealthy_step = -1
        self._awaiting_good: list[StateRef] = []
        # asked for at every step: neither grows with the states that a long run saves
        self._newest_step: dict[int, int] = {}  # by epoch
        self._checkpoints: dict[int, int] = {}  # the same, of checkpoints alone
        self.error = self.gap = self.end_error = self._noted = ""
        self._ended: tuple[int, int] | None = None
        self._failures = self._held_back = 0
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether `save` would take a copy now: there is room for one more."""
        return self._pending < BUFFERS and time.monotonic() >= self._not_before

    def copied(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copies of them for a snapshot that is saved next."""
        return on_the_host(tensors) if self._staging is None else self._staging.copy(tensors)

    def save(self, snapshot: Snapshot, kind: StateKind, *, last: bool = False) -> None:
        """Queue a copy of the state. Call it only while `ready`, or after `flush`. last: there may be
        no other try, so it is not held back by a history that cannot be written.
        """
        self._queue_work(_Save(snapshot, kind, last))

    def failed(self) -> set[StateKind]:
        """The kinds whose last save failed since the last call: they are due again."""
        with self._lock:
            failed, self._failed = self._failed, set()
            return failed

    def holds(self, epoch: int, step: int) -> bool:
        """Whether the newest checkpoint of the epoch that this process has made durable is of that step:
        within an epoch steps only rise.
        """
        return self._checkpoints.get(epoch) == step

    def newest_step(self, epoch: int) -> int | None:
        """The step of the newest state of this epoch that this process has made durable."""
        return self._newest_step.get(epoch)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending; False where the time ran out."""
        with self._settled:
            return self._settled.wait_for(lambda: self._pending == 0, timeout)

    def _queue_work(self, item: _Save | Complete) -> None:
        with self._lock:
            self._pending += 1
        self._queue.put(item)

    def _done(self) -> None:
        with self._settled:
            self._pending -= 1
            self._settled.notify_all()

    def record_end(self, done: Complete, timeout: float) -> bool:
        """Record the run's end, waiting for the store at most about twice the timeout, seconds. False
        if it is not on record by then: call it again.
        """
        place = done.epoch, done.step
        if self.flush(timeout) and self._ended != place:
            self._queue_work(done)
            self.flush(timeout)
        return self._ended == place

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is pending and end the thread; False where the time ran out."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def note_step(self, step: int, *, epoch: int, healthy: bool) -> None:
        """Tell the saver how the step before ``step`` went. A state with 25 healthy steps of its
        own epoch behind it is good; the mark is written by the thread.
        """
        with self._lock:
            waiting = [ref for ref in self._awaiting_good if ref.epoch == epoch]
            if not healthy:
                self._unhealthy_step, waiting = step, []
            ripe = [ref for ref in waiting if step - ref.step >= GOOD_AFTER_STEPS]
            self._awaiting_good = [ref for ref in waiting if ref not in ripe]
        for ref in ripe:
            self._queue.put(_Mark(ref))

    def record(self, stats: StepStats) -> None:
        """Keep a step for the history in the store; its thread writes it."""
        if self._journal.note(stats):
            self._queue.put(_Chunk())

    def adopted(self, entry: LineageEntry, attempt: int) -> None:
        """The state that opened an epoch has been taken up: its steps belong to the history."""
        self._queue.put(_Adopted(entry, attempt))

    def resumed(self, ref: StateRef) -> None:
        """Training goes on from this state: its steps say whether it is good, if nobody has yet."""
        if not ref.good and ref.kind is not StateKind.ROLLOUT:
            with self._lock:
                self._awaiting_good.append(ref)
        self._queue.put(_Start())  # the next save is some steps away

    def new_epoch(self) -> None:
        """The steps that follow belong to another lineage: they say nothing about older states."""
        with self._lock:
            self._awaiting_good, self._unhealthy_step = [], -1

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Mark):
                self._mark_good(item.ref)
            elif isinstance(item, _Adopted):
                self._journal.adopted(item.entry, item.attempt)
            elif isinstance(item, Complete):
                self._end(item)
            elif isinstance(item, _Chunk):
                self._journal.write(whole=True)
            elif isinstance(item, _Start):
                self._uploads.start()
            else:
                self._try(item)
        self._journal.write(whole=True)
        self._uploads.close()

    def _try(self, save: _Save) -> None:
        try:
            self._write(save)
        except Exception as error:  # noqa: BLE001  a failed save must not end the saver
            step = save.snapshot.meta["step"]
            _log.error("saver.failed", step=step, error=f"{type(error).__name__}: {error}")
            self.error = error.why if isinstance(error, StoreUnavailable) else str(error)
            with self._lock:
                self._failed.add(save.kind)
                wait = min(_RETRY_SECONDS * 2.0**self._failures, _MOST_RETRY_SECONDS)
                self._not_before = time.monotonic() + wait
                self._failures = min(self._failures + 1, 10)
        else:
            self.error, self._failures = "", 0
        finally:
            if self._staging is not None and isinstance(save.snapshot.tensors, Staged):
                self._staging.give_back(save.snapshot.tensors.buffer)
            self._done()
            # not before the first save of a run: both would start at once, on the same cores
            if not save.last:
                self._uploads.start()

    def _end(self, done: Complete) -> None:
        try:
            if not completion.record(self._store, done):
                _log.info("saver.complete_already")
        except Exception as error:  # noqa: BLE001  it must not end the saver
            self.end_error = error.why if isinstance(error, StoreUnavailable) else str(error)
            _log.warning("saver.not_completed", error=str(error))
        else:
            self.end_error, self._ended = "", (done.epoch, done.step)
        finally:
            self._done()

    def _write(self, save: _Save) -> None:
        snapshot, kind, started = save.snapshot, save.kind, time.monotonic()
        meta = snapshot.meta
        if isinstance(snapshot.tensors, Staged):
            snapshot.tensors.copied()
        # its rows first: a start from this state finds the steps before it
        outage = self._journal.write(whole=kind is StateKind.CHECKPOINT)
        if outage is None:
            self._held_back = 0
        elif self._holds_back(outage) and not save.last:
            self._held_back += 1
            raise outage
        folder = keys.state(kind, meta["epoch"], meta["attempt"], meta["step"])
        # compressing takes longer than all the rest and saves 8 %: not for what lives for minutes
        lives = kind is StateKind.CHECKPOINT or is_log_spaced(
            meta["step"], self._rules.log_spaced_from
        )
        level = self._rules.compression_level if lives else 0
        ref = checkpoint.publish(
            self._store,
            snapshot,
            folder,
            kind,
            self._scratch,
            level,
            # branches fork from the ring: what they compare has to be what the run would do
            int8=self._rules.optimizer_state == "Int8" and kind is StateKind.CHECKPOINT,
            before_manifest=lambda: self._tell_gap(folder, meta["epoch"], meta["step"]),
            # of the last one the process ends: nothing trains beside it, and nothing may start late
            by=checkpoint.upload if save.last else self._uploads.upload,
        )
        with self._lock:
            self._newest_step[ref.epoch] = ref.step
            if kind is StateKind.CHECKPOINT:
                self._checkpoints[ref.epoch] = ref.step
            # a bad step may have come while this was being written
            if self._unhealthy_step <= ref.step:
                self._awaiting_good.append(ref)
        _log.info(
            "saver.saved",
            kind=kind.value,
            step=ref.step,
            epoch=ref.epoch,
            key=ref.key,
            seconds=round(time.monotonic() - started, 1),
        )
        rules, checkpoint_kind = self._rules, kind is StateKind.CHECKPOINT
        try:
            catalogue.prune(
                self._store,
                kind,
                keep_last=rules.keep_last if checkpoint_kind else rules.ring_keep,
                pinned_steps=rules.pinned,
                log_spaced_from=0 if checkpoint_kind else rules.log_spaced_from,
            )
            self._sweep()
        except StoreError as error:
            _log.warning("saver.not_pruned", error=str(error))

    def _sweep(self) -> None:
        """After the first save, and from time to time: what killed processes have left in the store. No
        save of this process is under way then. Raises StoreError.
        """
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        if swept := catalogue.sweep(self._store, time.time()):
            _log.info("saver.swept", states=len(swept), first=swept[0])

    def _holds_back(self, outage: StoreError) -> bool:
        """Whether a state waits for its rows. A store that refuses them may do so for good; so may one
        whose outage concerns nothing else.
        """
        passing = isinstance(outage, StoreUnavailable) and not isinstance(outage, StoreRefused)
        return passing and self._held_back < MOST_HELD_BACK

    def _tell_gap(self, folder: str, epoch: int, step: int) -> None:
        """A state is about to exist: give rows that could not be written another chance, and put
        beside it how many are missing all the same. Raises StoreError.
        """
        outage = None
        if self._journal.missing(epoch, step):
            outage = self._journal.write(whole=False)
        steps = self._journal.missing(epoch, step)
        if not steps:
            self.gap = ""
            if self._noted == folder:  # by a try that failed afterwards
                self._store.delete(keys.state_gap(folder))
            return
        why = "they came faster than the store took them"
        if outage is not None:
            why = outage.why if isinstance(outage, StoreUnavailable) else str(outage)
        self.gap = f"{steps} steps are not in the history: {why}"
        _log.warning("saver.history_gap", key=folder, steps=steps, why=why)
        self._noted = folder
        self._store.put(keys.state_gap(folder), dump(HistoryGap(steps=steps, why=why)))

    def _mark_good(self, ref: StateRef) -> None:
        try:
            manifest = read_manifest(self._store, ref.key)
            # not pruned since, and not another's
            if manifest is not None and manifest.state.digest == ref.digest:
                self._store.put(f"{ref.key}/good", b"", create=True)
        except AlreadyExists:
            return
        except StoreError as error:
            _log.warning("saver.good_mark_failed", key=ref.key, error=str(error))
