"""Where an attempt begins: on the text the run began with, from the newest state that it can restore."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import torch.distributed as dist

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_trainer import checkpoint, state
from forkcast_trainer.data import identity
from forkcast_trainer.errors import NoUsableStateError
from forkcast_trainer.newer_epoch import NewerEpoch
from forkcast_trainer.step import Engine
from forkcast_wire import beats, keys
from forkcast_wire.documents import DocumentError, HistoryGap, lineage_head, survey
from forkcast_wire.store import read_document, wait_for

_log = structlog.get_logger()


@dataclass(frozen=True)
class Beginning:
    """entry: the highest epoch's; None in epoch 0. ref: the state that was restored; None if the run
    has none yet.
    """

    entry: LineageEntry | None = None
    ref: StateRef | None = None

    @property
    def base_step(self) -> int:
        """The step that the epoch was opened at."""
        return 0 if self.entry is None else self.entry.base_step

    @property
    def opened(self) -> LineageEntry | None:
        """The epoch's entry, if the state is the one it was opened with."""
        return self.entry if self.entry is not None and self.ref == self.entry.state else None


def claim_text(engine: Engine, store: Store, stop: threading.Event) -> None:
    """The text is the one the run began with, and the same on every rank. Raises DataError."""
    ours, place = engine.text, engine.place
    first = [ours]
    if place.world > 1:
        with beats.during(beats.Phase.MEET):
            dist.broadcast_object_list(first, src=0)
    identity.agree(first[0], ours)
    if place.rank == 0:
        accept = engine.spec.training.changed_text == "Accept"
        wait_for(lambda: identity.claim(store, ours, accept=accept), stop)


class SavedStates:
    """The states of a run in its store, for the model in training that is to take them over."""

    def __init__(self, engine: Engine, store: Store, workdir: Path) -> None:
        self._engine, self._store, self._scratch = engine, store, workdir / "scratch"

    def fetch(self, ref: StateRef) -> checkpoint.Snapshot:
        """Read a state. Raises CheckpointError if it is damaged or another model's, StoreError."""
        admit = partial(state.admit, self._engine)
        return checkpoint.fetch(self._store, ref, self._scratch, self._engine.run_uid, admit)

    def newer_epoch(self) -> NewerEpoch | None:
        """The newest epoch's entry and state, checked against this model; None if the present epoch
        is the newest. Changes nothing: any thread may call it. Raises StoreError, ValueError, OSError.
        """
        entry = lineage_head(self._store)
        if entry is None or entry.epoch <= self._engine.position.epoch:
            return None
        saved = self.fetch(entry.state)
        state.check(self._engine, saved)
        return NewerEpoch(entry, saved)

    def resume(self, stop: threading.Event) -> Beginning:
        """Continue from the newest valid state of the highest epoch; the lineage log is the truth
        about the epoch, and names the state it was opened with. Rank 0 looks, all ranks follow: a
        record that appears meanwhile must not part them.

        Raises NoUsableStateError.
        """
        place, position = self._engine.place, self._engine.position
        found = [wait_for(self._newest, stop) if place.rank == 0 else Beginning()]
        if place.world > 1:
            with beats.during(beats.Phase.MEET):
                dist.broadcast_object_list(found, src=0)
        entry, ref = found[0].entry, found[0].ref
        if place.rank and ref is not None:
            state.restore(self._engine, wait_for(lambda: self.fetch(ref), stop))
        if entry is not None:
            position.epoch = entry.epoch
        _log.info("train.start", step=position.step, epoch=position.epoch)
        return found[0]

    def _newest(self) -> Beginning:
        """Restore the newest state of the highest epoch, or the one it was opened with; of two at one
        step the known good one. A state that does not verify, does not restore, or holds weights
        that are no numbers, gives way to the next older one. Raises
        NoUsableStateError if none is left: to begin again at step 0 would throw the training away in
        silence.
        """
        entry = lineage_head(self._store)
        epoch = entry.epoch if entry else 0
        saved, damaged = self._survey()
        candidates = [ref for ref in saved if ref.epoch == epoch]
        # of one step the good one, then the ring's, which holds every bit
        candidates.sort(
            key=lambda ref: (ref.step, ref.good, ref.kind is StateKind.RING, ref.attempt),
            reverse=True,
        )
        for ref in candidates:
            if self._restored(ref):
                return Beginning(entry, ref)
        if entry is not None:
            try:
                state.restore(self._engine, self.fetch(entry.state))
            except checkpoint.CheckpointError as error:
                raise NoUsableStateError(
                    f"{error}: epoch {epoch} was opened with this state, and has no other that can "
                    "be restored; restore it from a copy"
                ) from error
            return Beginning(entry, entry.state)
        lost = [ref.key for ref in candidates] + damaged
        if held := [key for key in lost if not keys.is_first(key)]:
            raise NoUsableStateError(
                f"none of the {len(held)} saved states can be restored ({held[0]} ...): see the "
                "lines above; restore them from a copy, or use another place to begin again"
            )
        return Beginning()

    def _survey(self) -> tuple[list[StateRef], list[str]]:
        """The saved states, and the folders of damaged ones, each of which is logged."""
        looks = [survey(self._store, kind) for kind in (StateKind.CHECKPOINT, StateKind.RING)]
        damaged = [folder for _, folders in looks for folder in folders]
        for folder in damaged:
            _log.warning("train.checkpoint_refused", key=folder, error="its manifest is damaged")
        return [ref for refs, _ in looks for ref in refs], damaged

    def _restored(self, ref: StateRef) -> bool:
        try:
            saved = self.fetch(ref)
            checkpoint.refuse_not_finite(ref, saved)
            state.restore(self._engine, saved)
        except checkpoint.CheckpointError as error:
            _log.warning("train.checkpoint_refused", key=ref.key, error=str(error))
            return False
        with suppress(DocumentError):
            if gap := read_document(self._store, HistoryGap, keys.state_gap(ref.key)):
                _log.warning("train.history_gap", key=ref.key, steps=gap.steps, why=gap.why)
        if others := checkpoint.other_versions(self._store, ref):
            _log.warning("train.other_versions", written_with=others, key=ref.key)
        return True
