"""Between two steps: rank 0 listens and decides, all ranks hear the same, save, wait, or adopt."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog
import torch
import torch.distributed as dist

from forkcast.records import StateKind
from forkcast.retention import is_log_spaced
from forkcast_trainer import state
from forkcast_trainer.newer_epoch import NewerEpoch, NewerEpochReader, Newest
from forkcast_trainer.orders import Order, Orders
from forkcast_trainer.report import Report
from forkcast_trainer.resume import SavedStates
from forkcast_trainer.run_end import RunEnd
from forkcast_trainer.saver import Saver
from forkcast_trainer.step import Engine
from forkcast_wire import beats, crash

_log = structlog.get_logger()
_HELD_POLL_SECONDS: Final = 0.2
#: The order in which saves that are due are made; a save's code on the ranks' wire is its place + 1.
_KINDS: Final = (StateKind.CHECKPOINT, StateKind.RING)


@dataclass(frozen=True)
class Agreed:
    """What all ranks do now, what they save before, and whether a newer epoch is to be adopted as soon
    as all have its state.
    """

    order: Order
    save: StateKind | None
    collapse: bool

    @property
    def pauses(self) -> bool:
        """Whether anything but the next step comes first."""
        return self.order is not Order.GO_ON or self.save is not None or self.collapse


class Boundary:
    """Of one rank. due: the kinds of state that are to be saved as soon as the saver takes them."""

    def __init__(
        self,
        engine: Engine,
        states: SavedStates,
        stop: threading.Event,
        *,
        saver: Saver | None,
        report: Report,
        end: RunEnd,
    ) -> None:
        """stop: the process is to leave. saver: rank 0's, which decides; None for the others."""
        self._engine, self._place, self._stop = engine, engine.place, stop
        self._saver, self._report, self._end = saver, report, end
        self._orders = Orders(engine.run_uid)
        self._newer = NewerEpochReader(states.newer_epoch)
        self._loaded: NewerEpoch | Newest | None = None
        self.due: set[StateKind] = set()
        if engine.position.step == 0:
            self.due.add(StateKind.RING)  # an early trigger needs a base, too
        elif engine.position.epoch:
            self.due.add(StateKind.CHECKPOINT)  # the new epoch must be durable

    # --------------------------------------------------------------------------------- agreement

    def agreed(self) -> Agreed:
        """The same on all ranks; the largest order that any of them wishes."""
        wish, collapse = (Order.GO_ON, False) if self._saver is None else self._wish()
        if self._stop.is_set():
            wish = Order.STOP
        save = self._next_save()
        if self._place.world == 1:
            return Agreed(wish, save, collapse)
        place = 0 if save is None else 1 + _KINDS.index(save)
        codes = torch.tensor([int(wish), place, int(collapse)])
        with beats.during(beats.Phase.MEET):
            dist.all_reduce(codes, op=dist.ReduceOp.MAX)
        order, code, collapsing = codes.tolist()
        return Agreed(Order(order), _KINDS[code - 1] if code else None, bool(collapsing))

    def _wish(self) -> tuple[Order, bool]:
        """What rank 0 wants: an order, and whether a newer epoch is to be adopted."""
        for directive in self._report.reporter.directives():
            self._orders.hear(directive)
        collapse = self._orders.epoch > self._engine.position.epoch
        if self._orders.holds(time.monotonic()):
            return Order.HOLD, collapse
        if self._engine.position.step < self._engine.spec.training.total_steps:
            return Order.GO_ON, collapse
        if collapse or self._end.waits:
            return Order.WAIT, collapse
        # a directive may be lost with its monitor; the log is the truth
        self._loaded = self._loaded or self._newer.poll()
        if isinstance(self._loaded, Newest):
            self._loaded = None
            return Order.GO_ON, False
        return Order.WAIT, self._loaded is not None

    def wait(self, order: Order) -> None:
        """A moment, as WAIT or HOLD has it: until what it waits for may be there."""
        newer = order is Order.WAIT or self._newer.reading
        with beats.during(beats.Phase.HOLD):
            (self._newer if newer else self._report.reporter).wait(_HELD_POLL_SECONDS)

    # -------------------------------------------------------------------------------------- save

    def after(self, step: int) -> None:
        """The steps before ``step`` are taken: which saves are due."""
        if self._saver is None:
            return
        rules = self._engine.spec.checkpoint
        due = set()
        if step % rules.every_steps == 0 or self._orders.takes_checkpoint():
            due.add(StateKind.CHECKPOINT)
        if step % rules.ring_every_steps == 0 or is_log_spaced(step, rules.log_spaced_from):
            due.add(StateKind.RING)
        self._saver.skipped += len(self.due & due)  # the one before it was never made
        self.due |= due

    def _next_save(self) -> StateKind | None:
        """A save that is due, or None. While another one is pending, the next step asks again."""
        if self._saver is None:
            return None
        self.due |= self._saver.failed()
        if self._saver.holds(self._engine.position.epoch, self._engine.position.step):
            self.due.discard(StateKind.CHECKPOINT)  # the end has saved it
        due = [kind for kind in _KINDS if kind in self.due]
        return due[0] if due and self._saver.ready else None

    def save(self, kind: StateKind) -> None:
        """Hand a copy of the state to the saver; all ranks give their generators."""
        ranks = state.randomness_of_all(self._engine)
        if self._saver is not None:
            self._saver.save(state.snapshot(self._engine, ranks, self._saver.copied), kind)
            self.due.discard(kind)

    # ---------------------------------------------------------------------------------- adoption

    def adopt(self) -> bool:
        """Switch to the newest epoch of the lineage, in place, and make it durable, once all ranks
        have read its state; until then training goes on. Never waits for the store.
        """
        found = self._read_by_all()
        if found is None:
            return False
        entry, position = found.entry, self._engine.position
        self._engine.before_update()  # a copy of the state may be under way
        crash.reach("before-adopt")
        self._orders.compare(entry)
        state.restore(self._engine, found.saved)
        position.epoch = entry.epoch
        crash.reach("after-adopt")
        self._orders.release()
        self._report.adopted(entry)
        self.due = {StateKind.CHECKPOINT}
        _log.info("train.adopted", epoch=entry.epoch, step=position.step, branch=entry.branch)
        return True

    def _read_by_all(self) -> NewerEpoch | None:
        """The newest epoch once every rank has read it, which takes it from what is loaded."""
        found = self._loaded or self._newer.poll()
        if isinstance(found, Newest):
            _log.warning("train.stale_collapse", wanted=self._orders.epoch)
            self._orders.epoch, found = self._engine.position.epoch, None
        mine = found.entry.epoch if found else 0
        low, high = self._epochs_of_all(mine)
        if found is not None and low == high:
            self._loaded = None
            return found
        self._loaded = found if mine == high else None  # a rank has read a newer one: read again
        return None

    def _epochs_of_all(self, epoch: int) -> tuple[int, int]:
        """The lowest and the highest epoch whose state a rank has read (0: none)."""
        if self._place.world == 1:
            return epoch, epoch
        codes = torch.tensor([epoch, -epoch])
        with beats.during(beats.Phase.MEET):
            dist.all_reduce(codes, op=dist.ReduceOp.MIN)
        return int(codes[0].item()), -int(codes[1].item())
