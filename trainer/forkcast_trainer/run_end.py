"""The end of an attempt: the last state is made durable and the run's end recorded, as far as the store
takes them in the time there is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import IntEnum
from functools import partial

import torch
import torch.distributed as dist

from forkcast.records import StateKind
from forkcast_trainer import state
from forkcast_trainer.placement import Placement
from forkcast_trainer.randomness import Randomness
from forkcast_trainer.saver import Saver
from forkcast_trainer.step import Engine
from forkcast_wire import beats
from forkcast_wire.documents import Complete

#: Between two tries of an end that the store has refused.
_RETRY_SECONDS = 1.0
#: What leaving waits for the store at most; the supervisor kills after 30.
LEAVE_SECONDS = 20.0
_NO_ANSWER = f"the store has not taken the last state within {LEAVE_SECONDS:.0f} s"
#: What one try to end waits for the store at most: between two, orders are heard.
_END_SECONDS = 1.0
#: So long an end whose last state is saved is tried again; then the run leaves without having it on
#: record, and the next start has nothing else to do. A state that is saved nowhere is not given up.
MOST_END_SECONDS = 300.0


class End(IntEnum):
    """How far the end of a run has come; the least of all ranks' counts."""

    NOT_YET = 0
    UNRECORDED = 1
    RECORDED = 2


class RunEnd:
    """Of one rank; saver: rank 0's, None for the others. ``unsaved``: it was left with a state that is
    saved nowhere. ``unrecorded``: why the run's end is not on record, if it was left without; None if
    it was not.
    """

    def __init__(self, engine: Engine, place: Placement, saver: Saver | None) -> None:
        self._engine, self._place, self._saver = engine, place, saver
        self._started = time.monotonic()
        self._final: tuple[int, int, float] | None = None  # epoch, step, loss
        self._saved_at: float | None = None  # when the last state was durable
        self._retry_at = 0.0
        self.unsaved = False
        self.unrecorded: str | None = None

    @property
    def waits(self) -> bool:
        """Whether the store has refused the end a moment ago."""
        return time.monotonic() < self._retry_at

    @property
    def loss(self) -> float | None:
        """Of the full evaluation after the last step; None before it."""
        return None if self._final is None else self._final[2]

    @property
    def save_error(self) -> str:
        """Why the last state is not saved, '' if that is not known to be so."""
        return _NO_ANSWER if self.unsaved else ""

    def leave(self) -> None:
        """SIGTERM: save what there is."""
        beats.beat(beats.Phase.END)
        ranks = state.randomness_of_all(self._engine)
        if self._saver is not None:
            self.unsaved = not self._save(self._saver, ranks, LEAVE_SECONDS / 2, last=True)

    def complete(self) -> End:
        """The last step is taken: evaluate, save and say so, within moments. All ranks get the same
        answer; after NOT_YET it has to be called again.
        """
        beats.beat(beats.Phase.END)
        position = self._engine.position
        if self._final is None or self._final[:2] != (position.epoch, position.step):
            loss = self._engine.evaluate(full=True)
            self._final = (position.epoch, position.step, loss)
            self._saved_at = None
        end = self._of_all(self._try(state.randomness_of_all(self._engine), self._final[2]))
        if end is End.NOT_YET:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
        elif end is End.UNRECORDED:
            why = self._saver.end_error if self._saver is not None else ""
            why = why or "the store does not answer"
            self.unrecorded = f"step {position.step} is saved, the end is not on record yet: {why}"
        return end

    def _of_all(self, mine: End) -> End:
        if self._place.world == 1:
            return mine
        verdict = torch.tensor(int(mine))
        with beats.during(beats.Phase.MEET):
            dist.all_reduce(verdict, op=dist.ReduceOp.MIN)
        return End(int(verdict.item()))

    def _try(self, ranks: Sequence[Randomness], loss: float) -> End:
        if self._saver is None:
            return End.RECORDED  # for its part
        if not self._save(self._saver, ranks, _END_SECONDS):
            return End.NOT_YET
        now = time.monotonic()
        if self._saved_at is None:
            self._saved_at = now
        position = self._engine.position
        done = Complete(
            epoch=position.epoch,
            step=position.step,
            tokens=position.tokens,
            validation_loss=loss,
            seconds=now - self._started,
        )
        if self._saver.record_end(done, _END_SECONDS):
            return End.RECORDED
        return End.UNRECORDED if now - self._saved_at > MOST_END_SECONDS else End.NOT_YET

    def _save(
        self, saver: Saver, ranks: Sequence[Randomness], seconds: float, *, last: bool = False
    ) -> bool:
        """Make a checkpoint of this step durable; False if it is not so within about twice the
        seconds. last: it is not tried again.
        """
        position = self._engine.position
        saved = partial(saver.holds, position.epoch, position.step)
        if not saved() and saver.flush(seconds) and not saved():
            snapshot = state.snapshot(self._engine, ranks, saver.copied)
            saver.save(snapshot, StateKind.CHECKPOINT, last=last)
            saver.flush(seconds)
        return saved()
