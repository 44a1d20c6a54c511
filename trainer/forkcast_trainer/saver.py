"""Saves in the background: at most one copy pending, and the step never waits for the store."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import structlog

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_trainer import checkpoint, state
from forkcast_trainer.checkpoint import CheckpointError
from forkcast_trainer.engine import Engine
from forkcast_wire import catalogue, keys
from forkcast_wire.manifest import Checkpoint
from forkcast_wire.store import StoreError

_log = structlog.get_logger()
#: Finite, unskipped steps after which a state counts as good.
GOOD_AFTER_STEPS = 25


class Saver:
    """Owns the writing thread of rank 0. ``saved`` lists what became durable, oldest first."""

    def __init__(self, store: Store, workdir: Path, rules: Checkpoint) -> None:
        self._store, self._rules = store, rules
        self._scratch = workdir / "scratch"
        self._queue: queue.Queue[tuple[checkpoint.Snapshot, StateKind] | None] = queue.Queue(1)
        self._idle = threading.Event()
        self._idle.set()
        self.saved: list[StateRef] = []
        self.skipped = 0
        self._awaiting_good: list[StateRef] = []
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    def save(self, engine: Engine, kind: StateKind) -> bool:
        """Copy the state and queue it; False where an earlier copy is still pending."""
        if not self._idle.is_set():
            self.skipped += 1
            return False
        self._idle.clear()
        self._queue.put((state.snapshot(engine), kind))
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending; False where the time ran out."""
        return self._idle.wait(timeout)

    def close(self) -> None:
        """Finish what is pending and end the thread."""
        self.flush()
        self._queue.put(None)
        self._thread.join()

    def note_step(self, step: int, *, healthy: bool) -> None:
        """Tell the saver how a step went; a state with 25 healthy steps behind it is good."""
        if not healthy:
            self._awaiting_good.clear()
            return
        ripe = [r for r in self._awaiting_good if step - r.step >= GOOD_AFTER_STEPS]
        for ref in ripe:
            self._awaiting_good.remove(ref)
            try:
                self._store.put(f"{ref.key}/good", b"")
            except StoreError as error:
                _log.warning("saver.good_mark_failed", key=ref.key, error=str(error))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            snapshot, kind = item
            try:
                self._write(snapshot, kind)
            except (StoreError, CheckpointError, OSError) as error:
                _log.error("saver.failed", step=snapshot.meta["step"], error=str(error))
            finally:
                self._idle.set()

    def _write(self, snapshot: checkpoint.Snapshot, kind: StateKind) -> None:
        meta = snapshot.meta
        folder = keys.state(kind, meta["epoch"], meta["attempt"], meta["step"])
        ref = checkpoint.publish(
            self._store, snapshot, folder, kind, self._scratch, self._rules.compression_level
        )
        self.saved.append(ref)
        self._awaiting_good.append(ref)
        keep = self._rules.keep_last if kind is StateKind.CHECKPOINT else self._rules.ring_keep
        catalogue.prune(self._store, kind, keep_last=keep, pinned_steps=self._rules.pinned)
        _log.info("saver.saved", kind=kind.value, step=ref.step, epoch=ref.epoch, key=ref.key)
