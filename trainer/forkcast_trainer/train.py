"""The training run, top to bottom: start, step, save, listen, adopt, end."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import torch
import torch.distributed as dist

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, StepStats
from forkcast_trainer import checkpoint, state
from forkcast_trainer.data import identity, published
from forkcast_trainer.errors import NoUsableStateError
from forkcast_trainer.newer_epoch import NewerEpoch, NewerEpochReader, Newest
from forkcast_trainer.orders import Order, Orders
from forkcast_trainer.placement import Placement, placement
from forkcast_trainer.progress import Progress
from forkcast_trainer.run_end import LEAVE_SECONDS, End, RunEnd
from forkcast_trainer.saver import Saver
from forkcast_trainer.step import Engine
from forkcast_wire import beats, crash, keys
from forkcast_wire.documents import (
    DocumentError,
    HistoryGap,
    RunInfo,
    lineage_head,
    load,
    survey,
)
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.reporting import Hello, Reporter
from forkcast_wire.store import open_store, read_document, wait_for

_log = structlog.get_logger()
_HELD_POLL_SECONDS = 0.2
#: The order in which saves that are due are made; a save's code on the ranks' wire is its place + 1.
_KINDS = (StateKind.CHECKPOINT, StateKind.RING)


class TrainingRun:
    """One attempt of a run on one rank."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        workdir: Path,
        *,
        monitor: str,
        attempt: int,
        stop: threading.Event,
        ranks: tuple[int, int, int] = (0, 1, 0),
    ) -> None:
        self.spec, self.workdir, self.stop = spec, workdir, stop
        self.info = load(RunInfo, (workdir / keys.RUN).read_bytes())
        self.store: Store = wait_for(lambda: open_store(spec.storage, workdir), stop)
        self.place: Placement = placement(spec, *ranks)
        published.fetch(self.store, spec.data, workdir / "tokens")
        self.engine = Engine(spec, self.info.uid, workdir, self.place)
        self.engine.position.attempt = attempt
        self.base_step = 0
        self._durable_step: int | None = None
        self._claim_text()
        opened = self._resume()
        self.leads = self.place.rank == 0
        self.saver = Saver(self.store, workdir, spec.checkpoint) if self.leads else None
        if self.saver is not None and opened is not None:
            self.saver.adopted(opened, attempt)
        self.reporter = Reporter(monitor if self.leads else "", self._hello())
        self.end = RunEnd(self.engine, self.place, self.saver)
        self.orders = Orders(self.info.uid)
        self.newer = NewerEpochReader(self._newer_epoch)
        self._loaded: NewerEpoch | Newest | None = None
        self._due: set[StateKind] = set()
        self._validation_loss: float | None = None
        self.progress = Progress(
            workdir, spec.training.total_steps, str(self.place.device), self.engine.position.tokens
        )

    # ------------------------------------------------------------------------------------- start

    def _hello(self) -> Hello:
        position = self.engine.position
        return Hello(
            run_uid=self.info.uid,
            epoch=position.epoch,
            attempt=position.attempt,
            rank=self.place.rank,
            start_step=position.step,
            total_steps=self.spec.training.total_steps,
            base_step=self.base_step,
        )

    def _claim_text(self) -> None:
        """The text is the one the run began with, and the same on every rank. Raises DataError."""
        ours = self.engine.text
        first = [ours]
        if self.place.world > 1:
            with beats.during(beats.Phase.MEET):
                dist.broadcast_object_list(first, src=0)
        identity.agree(first[0], ours)
        if self.place.rank == 0:
            accept = self.spec.training.changed_text == "Accept"
            wait_for(lambda: identity.claim(self.store, ours, accept=accept), self.stop)
            published.publish_aside(self.store, self.spec.data, self.workdir / "tokens")

    def _resume(self) -> LineageEntry | None:
        """Continue from the newest valid state of the highest epoch; the lineage log is the truth
        about the epoch, and names the state it was opened with. Rank 0 looks, all ranks follow: a
        record that appears meanwhile must not part them. Returns the epoch's entry if it is the
        state it was opened with.
        """
        start = [wait_for(self._newest, self.stop)] if self.place.rank == 0 else [(None, None)]
        if self.place.world > 1:
            with beats.during(beats.Phase.MEET):
                dist.broadcast_object_list(start, src=0)
        entry, ref = start[0]
        if self.place.rank and ref is not None:
            state.restore(self.engine, wait_for(lambda: self._fetched(ref), self.stop))
        if entry is not None:
            self.engine.position.epoch, self.base_step = entry.epoch, entry.base_step
        self._durable_step = self.engine.position.step if ref is not None else None
        _log.info("train.start", step=self.engine.position.step, epoch=self.engine.position.epoch)
        return entry if entry is not None and ref == entry.state else None

    def _newest(self) -> tuple[LineageEntry | None, StateRef | None]:
        """The highest epoch's entry, and the state that has been restored: of that epoch, or the
        one it was opened with. A state that does not verify, or does not restore, gives way to the
        next older one. Raises NoUsableStateError if none is left: to begin again at step 0 would throw
        the training away in silence.
        """
        entry = lineage_head(self.store)
        epoch = entry.epoch if entry else 0
        saved, damaged = self._survey()
        candidates = [ref for ref in saved if ref.epoch == epoch]
        candidates.sort(key=lambda ref: (ref.step, ref.attempt), reverse=True)
        for ref in candidates:
            if self._load(ref):
                return entry, ref
        if entry is not None:
            try:
                state.restore(self.engine, self._fetched(entry.state))
            except checkpoint.CheckpointError as error:
                raise NoUsableStateError(
                    f"{error}: epoch {epoch} was opened with this state, and has no other that can "
                    "be restored; restore it from a copy"
                ) from error
            return entry, entry.state
        lost = [ref.key for ref in candidates] + damaged
        if held := [key for key in lost if not keys.is_first(key)]:
            raise NoUsableStateError(
                f"none of the {len(held)} saved states can be restored ({held[0]} ...): see the "
                "lines above; restore them from a copy, or use another place to begin again"
            )
        return None, None

    def _survey(self) -> tuple[list[StateRef], list[str]]:
        """The saved states, and the folders of damaged ones, each of which is logged."""
        looks = [survey(self.store, kind) for kind in (StateKind.CHECKPOINT, StateKind.RING)]
        damaged = [folder for _, folders in looks for folder in folders]
        for folder in damaged:
            _log.warning("train.checkpoint_refused", key=folder, error="its manifest is damaged")
        return [ref for refs, _ in looks for ref in refs], damaged

    def _fetched(self, ref: StateRef) -> checkpoint.Snapshot:
        scratch, admit = self.workdir / "scratch", partial(state.admit, self.engine)
        return checkpoint.fetch(self.store, ref, scratch, self.info.uid, admit)

    def _load(self, ref: StateRef) -> bool:
        try:
            state.restore(self.engine, self._fetched(ref))
        except checkpoint.CheckpointError as error:
            _log.warning("train.checkpoint_refused", key=ref.key, error=str(error))
            return False
        with suppress(DocumentError):
            if gap := read_document(self.store, HistoryGap, keys.state_gap(ref.key)):
                _log.warning("train.history_gap", key=ref.key, steps=gap.steps, why=gap.why)
        if others := checkpoint.other_versions(self.store, ref):
            _log.warning("train.other_versions", written_with=others, key=ref.key)
        return True

    def _become(self, entry: LineageEntry, saved: checkpoint.Snapshot) -> None:
        state.restore(self.engine, saved)
        self.engine.position.epoch = entry.epoch
        self.base_step = entry.base_step
        self._durable_step = self.engine.position.step

    # -------------------------------------------------------------------------------------- loop

    def run(self) -> bool:
        """Train to the last step. True if the run is complete; False if it was stopped, or its end
        could not be recorded.
        """
        total = self.spec.training.total_steps
        if self.engine.position.step == 0:
            self._due.add(StateKind.RING)  # an early trigger needs a base, too
        elif self.engine.position.epoch:
            self._due.add(StateKind.CHECKPOINT)  # the new epoch must be durable
        phase = beats.Phase.FIRST_STEP
        while True:
            beats.beat(phase, self.engine.position.step)
            order, kind, collapse = self._agreed()
            if kind is not None:
                self._save(kind)
            if order is Order.STOP:
                return self._leave()
            if collapse and self._adopt():
                continue
            if order is Order.WAIT:
                self._wait(self.newer)
            elif order is Order.HOLD:
                if self.progress.word != "held" and self.place.device.type == "cuda":
                    torch.cuda.empty_cache()  # the rollouts need the room
                self._tell_progress("held")
                self._wait(self.newer if self.newer.reading else self.reporter)
            elif self.engine.position.step >= total:
                if self._complete():
                    return self.end.unrecorded is None
            else:
                stats = self.engine.step()
                crash.reach("step")
                self._after(stats)
                phase = beats.Phase.STEP

    def _wait(self, what: NewerEpochReader | Reporter) -> None:
        with beats.during(beats.Phase.HOLD):
            what.wait(_HELD_POLL_SECONDS)

    def _after(self, stats: StepStats) -> None:
        step = stats.step + 1
        validation = self._validate(step)
        if self.saver is None:
            return
        measured = _with_validation(stats, validation)
        self.reporter.report(measured)
        self.saver.record(measured)
        self.saver.note_step(step, epoch=stats.epoch, healthy=not stats.skipped)
        if step % self.spec.checkpoint.every_steps == 0 or self.orders.takes_checkpoint():
            self._due.add(StateKind.CHECKPOINT)
        if step % self.spec.checkpoint.ring_every_steps == 0:
            self._due.add(StateKind.RING)
        self._tell_progress("running")

    def _validate(self, step: int) -> float | None:
        rules, total = self.spec.data.validation, self.spec.training.total_steps
        if step == total or (step % rules.every_steps and step % rules.full_every_steps):
            return None  # the last step is followed by the full evaluation of the end
        full = step % rules.full_every_steps == 0
        with beats.during(beats.Phase.EVALUATE):
            self._validation_loss = self.engine.evaluate(full=full)
        return self._validation_loss

    def _save(self, kind: StateKind) -> None:
        """Hand a copy of the state to the saver; all ranks give their generators."""
        ranks = state.randomness_of_all(self.engine)
        if self.saver is not None:
            self.saver.save(state.snapshot(self.engine, ranks), kind)
            self._due.discard(kind)

    # --------------------------------------------------------------------------------- boundary

    def _agreed(self) -> tuple[Order, StateKind | None, bool]:
        """What all ranks do now, what they save, and whether a newer epoch is to be adopted as soon
        as all have its state: rank 0 listens, everybody hears the same.
        """
        wish, collapse = self._wish() if self.leads else (Order.GO_ON, False)
        if self.stop.is_set():
            wish = Order.STOP
        save = self._next_save()
        if self.place.world > 1:
            place = 0 if save is None else 1 + _KINDS.index(save)
            codes = torch.tensor([int(wish), place, int(collapse)])
            with beats.during(beats.Phase.MEET):
                dist.all_reduce(codes, op=dist.ReduceOp.MAX)
            order, code, collapsing = codes.tolist()
            wish, save = Order(order), _KINDS[code - 1] if code else None
            collapse = bool(collapsing)
        return wish, save, collapse

    def _next_save(self) -> StateKind | None:
        """A save that is due; while another is pending it waits for a later step."""
        if self.saver is None:
            return None
        self._due |= self.saver.failed()
        if self.saver.holds(self.engine.position.epoch, self.engine.position.step):
            self._due.discard(StateKind.CHECKPOINT)  # the end has saved it
        due = [kind for kind in _KINDS if kind in self._due]
        return due[0] if due and self.saver.ready else None

    def _wish(self) -> tuple[Order, bool]:
        """What rank 0 wants: an order, and whether a newer epoch is to be adopted."""
        for directive in self.reporter.directives():
            self.orders.hear(directive)
        collapse = self.orders.epoch > self.engine.position.epoch
        if self.orders.holds(time.monotonic()):
            return Order.HOLD, collapse
        if self.engine.position.step < self.spec.training.total_steps:
            return Order.GO_ON, collapse
        if collapse or self.end.waits:
            return Order.WAIT, collapse
        # a directive may be lost with its monitor; the log is the truth
        self._loaded = self._loaded or self.newer.poll()
        if isinstance(self._loaded, Newest):
            self._loaded = None
            return Order.GO_ON, False
        return Order.WAIT, self._loaded is not None

    def _adopt(self) -> bool:
        """Switch to the newest epoch of the lineage, in place, and make it durable, once all ranks
        have read its state; until then training goes on. Never waits for the store.
        """
        self._loaded = self._loaded or self.newer.poll()
        if isinstance(self._loaded, Newest):
            _log.warning("train.stale_collapse", wanted=self.orders.epoch)
            self._loaded, self.orders.epoch = None, self.engine.position.epoch
        mine = self._loaded.entry.epoch if self._loaded else 0
        low, high = self._epochs_of_all(mine)
        if self._loaded is None or low != high:
            if mine < high:
                self._loaded = None  # a rank has read a newer one: read again
            return False
        crash.reach("before-adopt")
        entry, saved, self._loaded = self._loaded.entry, self._loaded.saved, None
        self.orders.compare(entry)
        self._become(entry, saved)
        crash.reach("after-adopt")
        self.orders.release()
        self.reporter.new_epoch(self._hello())
        self._due, self._validation_loss = {StateKind.CHECKPOINT}, None
        if self.saver is not None:
            self.saver.new_epoch()
            self.saver.adopted(entry, self.engine.position.attempt)
        _log.info(
            "train.adopted", epoch=entry.epoch, step=self.engine.position.step, branch=entry.branch
        )
        return True

    def _newer_epoch(self) -> NewerEpoch | None:
        """For the reader's thread: the newest epoch's entry and state, checked against this model;
        None if this one is the newest. Raises StoreError, ValueError, OSError.
        """
        entry = lineage_head(self.store)
        if entry is None or entry.epoch <= self.engine.position.epoch:
            return None
        saved = self._fetched(entry.state)
        state.check(self.engine, saved)
        return NewerEpoch(entry, saved)

    def _epochs_of_all(self, epoch: int) -> tuple[int, int]:
        """The lowest and the highest epoch whose state a rank has read (0: none)."""
        if self.place.world == 1:
            return epoch, epoch
        codes = torch.tensor([epoch, -epoch])
        with beats.during(beats.Phase.MEET):
            dist.all_reduce(codes, op=dist.ReduceOp.MIN)
        return int(codes[0].item()), -int(codes[1].item())

    # --------------------------------------------------------------------------------------- end

    def _leave(self) -> bool:
        """SIGTERM: save what there is and go."""
        self.end.leave()
        self._close("stopped", 1.0)
        return False

    def _complete(self) -> bool:
        """The last step is taken. False if its end has to be tried again: the store does not take it
        now.
        """
        end = self.end.complete()
        if end is End.NOT_YET:
            self._tell_progress("ending")
            return False
        self._validation_loss = self.end.loss
        if end is End.RECORDED:
            self._close("finished", LEAVE_SECONDS)
        else:
            self._close("unrecorded", 1.0)
        return True

    def _close(self, word: str, seconds: float) -> None:
        """seconds: what is pending gets them at most."""
        if self.saver is None:
            return
        self._tell_progress(word, force=True)
        self.reporter.close()
        self.saver.close(seconds)

    def _saved_step(self) -> int | None:
        """The newest step of this epoch that a store holds: resumed from, adopted, or saved."""
        saved = self.saver.newest_step(self.engine.position.epoch) if self.saver else None
        known = [step for step in (saved, self._durable_step) if step is not None]
        return max(known, default=None)

    def _tell_progress(self, word: str, *, force: bool = False) -> None:
        if self.saver is None:
            return
        engine = self.engine
        self.progress.tell(
            word,
            engine.position,
            engine.actions,
            rate=engine.rates(engine.position.step)[0],
            validation_loss=self._validation_loss,
            dropped=self.reporter.dropped,
            saved_step=self._saved_step(),
            save_error=self.saver.error or self.end.save_error,
            history_gap=self.saver.gap,
            end_error=self.saver.end_error,
            force=force,
        )


def _with_validation(stats: StepStats, loss: float | None) -> StepStats:
    if loss is None:
        return stats
    return replace(stats, validation_loss=loss)
