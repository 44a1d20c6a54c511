"""The training run, top to bottom: start, step, save, listen, adopt, end."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import structlog
import torch
import torch.distributed as dist

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, StepStats
from forkcast_trainer import checkpoint, state
from forkcast_trainer.engine import Engine, Placement, placement
from forkcast_trainer.report import Hello, Reporter
from forkcast_trainer.saver import Saver
from forkcast_wire import crash, keys
from forkcast_wire.documents import Complete, RunInfo, lineage_head, load, saved_states
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import AlreadyExists, open_store, put_document

_log = structlog.get_logger()
_PROGRESS_SECONDS = 0.25
_HELD_POLL_SECONDS = 0.2


class Order(IntEnum):
    """What all ranks do at a step boundary; the largest that any rank wishes wins."""

    GO_ON = 0
    CHECKPOINT = 1
    HOLD = 2
    COLLAPSE = 3
    STOP = 4


@dataclass
class Hold:
    """A hold in force: whose, and until when on the monotonic clock."""

    branch: str
    until: float


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
        self.store: Store = open_store(spec.storage, workdir)
        self.place: Placement = placement(spec, *ranks)
        self.engine = Engine(spec, self.info.uid, workdir, self.place)
        self.engine.position.attempt = attempt
        self.base_step = 0
        self._resume()
        self.leads = self.place.rank == 0
        self.saver = Saver(self.store, workdir, spec.checkpoint) if self.leads else None
        self.reporter = Reporter(monitor if self.leads else "", self._hello())
        self._hold: Hold | None = None
        self._collapse: int = 0
        self._wants_checkpoint = False
        self._due: set[StateKind] = set()
        self._validation_loss: float | None = None
        self._told = 0.0
        self._clock = (time.monotonic(), self.engine.position.tokens)

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

    def _resume(self) -> None:
        """Continue from the newest valid state of the highest epoch; the lineage log is the truth
        about the epoch, and names the state it was opened with.
        """
        entry = lineage_head(self.store)
        epoch = entry.epoch if entry else 0
        candidates = [
            ref
            for kind in (StateKind.CHECKPOINT, StateKind.RING)
            for ref in saved_states(self.store, kind)
            if ref.epoch == epoch
        ]
        candidates.sort(key=lambda ref: (ref.step, ref.attempt), reverse=True)
        for ref in candidates:
            if self._load(ref):
                break
        else:
            if entry is not None:
                self._adopt_entry(entry)
        if entry is not None:
            self.base_step = entry.base_step
        _log.info("train.start", step=self.engine.position.step, epoch=epoch)

    def _load(self, ref: StateRef) -> bool:
        try:
            saved = checkpoint.fetch(self.store, ref, self.workdir / "scratch", self.info.uid)
        except checkpoint.CheckpointError as error:
            _log.warning("train.checkpoint_refused", key=ref.key, error=str(error))
            return False
        state.restore(self.engine, saved)
        return True

    def _adopt_entry(self, entry: LineageEntry) -> None:
        """Take over the state that a lineage entry names. Raises CheckpointError."""
        saved = checkpoint.fetch(self.store, entry.state, self.workdir / "scratch", self.info.uid)
        state.restore(self.engine, saved)
        self.engine.position.epoch = entry.epoch
        self.base_step = entry.base_step

    # -------------------------------------------------------------------------------------- loop

    def run(self) -> bool:
        """Train to the last step. True where the run is complete, False where it was stopped."""
        total = self.spec.training.total_steps
        if self.engine.position.step == 0:
            self._due.add(StateKind.RING)  # an early trigger needs a base, too
        elif self.engine.position.epoch:
            self._due.add(StateKind.CHECKPOINT)  # the new epoch must be durable
        self._save_due()
        while True:
            if (order := self._agreed()) is Order.STOP:
                return self._leave()
            if order is Order.COLLAPSE:
                self._adopt()
            elif order is Order.HOLD:
                self._told_progress("held", force=True)
                self.reporter.wait(_HELD_POLL_SECONDS)
                continue
            if self.engine.position.step >= total:
                if self._complete():
                    return True
                continue
            stats = self.engine.step()
            crash.reach("step")
            self._after(stats)

    def _after(self, stats: StepStats) -> None:
        step = stats.step + 1
        validation = self._validate(step)
        if self.leads and self.saver is not None:
            self.reporter.report(_with_validation(stats, validation))
            self.saver.note_step(step, healthy=not stats.skipped)
            if step % self.spec.checkpoint.every_steps == 0 or self._wants_checkpoint:
                self._due.add(StateKind.CHECKPOINT)
                self._wants_checkpoint = False
            if step % self.spec.checkpoint.ring_every_steps == 0:
                self._due.add(StateKind.RING)
            self._save_due()
            self._told_progress("running")

    def _validate(self, step: int) -> float | None:
        rules, total = self.spec.data.validation, self.spec.training.total_steps
        if step == total or (step % rules.every_steps and step % rules.full_every_steps):
            return None  # the last step is followed by the full evaluation of the end
        full = step % rules.full_every_steps == 0
        self._validation_loss = self.engine.evaluate(full=full)
        return self._validation_loss

    def _save_due(self) -> None:
        """Start one save that is due; where one is still pending, try again at the next step."""
        if self.saver is None:
            return
        for kind in (StateKind.CHECKPOINT, StateKind.RING):
            if kind in self._due and self.saver.save(self.engine, kind):
                self._due.discard(kind)

    # --------------------------------------------------------------------------------- boundary

    def _agreed(self) -> Order:
        """What all ranks do now: rank 0 listens, everybody hears the same."""
        wish = self._wish() if self.leads else Order.GO_ON
        if self.stop.is_set():
            wish = Order.STOP
        if self.place.world > 1:
            code = torch.tensor([int(wish)])
            dist.all_reduce(code, op=dist.ReduceOp.MAX)
            wish = Order(int(code.item()))
        return wish

    def _wish(self) -> Order:
        for directive in self.reporter.directives():
            self._hear(directive)
        if self._collapse > self.engine.position.epoch:
            return Order.COLLAPSE
        if self._hold is not None and time.monotonic() >= self._hold.until:
            _log.warning("train.hold_expired", branch=self._hold.branch)
            self._hold = None
        return Order.HOLD if self._hold is not None else Order.GO_ON

    def _hear(self, directive: object) -> None:
        kind = directive.WhichOneof("what")  # type: ignore[attr-defined]
        what = getattr(directive, kind)
        if directive.run_uid != self.info.uid:  # type: ignore[attr-defined]
            _log.warning("train.foreign_directive", id=directive.id)  # type: ignore[attr-defined]
        elif kind == "hold":
            until = time.monotonic() + what.deadline_seconds
            if self._hold is None or self._hold.branch != what.branch:
                self._hold = Hold(what.branch, until)
        elif kind == "resume" and self._hold is not None and self._hold.branch == what.branch:
            self._hold = None
        elif kind == "collapse":
            self._collapse = max(self._collapse, what.epoch)
        elif kind == "checkpoint_now":
            self._wants_checkpoint = True

    def _adopt(self) -> None:
        """Switch to the epoch of the lineage log, in place, and make it durable."""
        entry = lineage_head(self.store)
        if entry is None or entry.epoch <= self.engine.position.epoch:
            _log.warning("train.stale_collapse", wanted=self._collapse)
            self._collapse = 0
            return
        if self.saver is not None:
            self.saver.flush()
        crash.reach("before-adopt")
        self._adopt_entry(entry)
        crash.reach("after-adopt")
        self._hold = None
        self.reporter.new_epoch(self._hello())
        self._due = {StateKind.CHECKPOINT}
        self._save_due()
        _log.info(
            "train.adopted", epoch=entry.epoch, step=self.engine.position.step, branch=entry.branch
        )

    # --------------------------------------------------------------------------------------- end

    def _leave(self) -> bool:
        """SIGTERM: save what there is and go."""
        if self.saver is not None:
            self.saver.flush()
            self.saver.save(self.engine, StateKind.CHECKPOINT)
            self.saver.close()
            self._told_progress("stopped", force=True)
            self.reporter.close()
        return False

    def _complete(self) -> bool:
        """The last step is taken. False where a newer epoch has to be adopted first."""
        entry = lineage_head(self.store)
        if entry is not None and entry.epoch > self.engine.position.epoch:
            self._collapse = entry.epoch
            if self.place.world > 1 or not self.leads:
                self._adopt()
            return False
        loss = self.engine.evaluate(full=True)
        if self.saver is None:
            return True
        self.saver.flush()
        self.saver.save(self.engine, StateKind.CHECKPOINT)
        self.saver.close()
        position = self.engine.position
        done = Complete(
            epoch=position.epoch,
            step=position.step,
            tokens=position.tokens,
            validation_loss=loss,
            seconds=time.monotonic() - self._clock[0],
        )
        try:
            put_document(self.store, keys.COMPLETE, done)
        except AlreadyExists:
            _log.info("train.complete_already")
        self._validation_loss = loss
        self._told_progress("finished", force=True)
        self.reporter.close()
        return True

    def _told_progress(self, word: str, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._told < _PROGRESS_SECONDS:
            return
        self._told = now
        position, actions = self.engine.position, self.engine.actions
        since, tokens = self._clock
        rate = (position.tokens - tokens) / max(now - since, 1e-9)
        document = {
            "state": word,
            "epoch": position.epoch,
            "attempt": position.attempt,
            "step": position.step,
            "total_steps": self.spec.training.total_steps,
            "loss": position.loss,
            "validation_loss": self._validation_loss,
            "tokens": position.tokens,
            "tokens_per_second": round(rate, 1),
            "learning_rate": self.engine.rates(position.step)[0],
            "learning_rate_factor": actions.learning_rate_factor,
            "weight_decay_factor": actions.weight_decay_factor,
            "clipping": actions.clipping,
            "device": str(self.place.device),
            "dropped": self.reporter.dropped,
        }
        path = self.workdir / "progress.json"
        partial = path.with_suffix(".part")
        try:
            partial.write_text(json.dumps(document))
            partial.replace(path)
        except OSError as error:
            _log.warning("train.progress_not_written", error=str(error))


def _with_validation(stats: StepStats, loss: float | None) -> StepStats:
    if loss is None:
        return stats
    return replace(stats, validation_loss=loss)
