"""One rollout: restore a base, apply an action, run from rung to rung, publish what was measured.

It replays base -> trigger under its action, then runs on; at each rung it validates with its
weights and with the mean of its recent ones, publishes its end state (where that can be adopted) and
then the trial, and waits to be asked for more. It never writes anything that the main run reads except those.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import torch
from torch import Tensor

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, StepStats, Trial, TrialStatus
from forkcast_trainer import checkpoint, state
from forkcast_trainer.apply import apply
from forkcast_trainer.data import identity, published
from forkcast_trainer.placement import placement
from forkcast_trainer.slots import Slots
from forkcast_trainer.step import Engine
from forkcast_wire import crash, history, keys
from forkcast_wire.documents import RolloutJob, RolloutUntil
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.statistics import stats_row
from forkcast_wire.store import AlreadyExists, put_document, read_document, wait_for

T = TypeVar("T")
_log = structlog.get_logger()
_POLL_SECONDS, _BUCKET_POLL_SECONDS = 0.05, 1.0
#: Weights of so many last steps are averaged for the loss that is compared.
MEAN_WEIGHTS = 25
_MOST_LOSSES = 1024
#: Diverged: this many nats above the base's loss at this many steps in a row, or not finite.
DIVERGED_NATS, DIVERGED_STEPS = 3.0, 5


def _patiently(call: Callable[[], T]) -> T:
    """A rollout outlives an outage of its store: what it has measured is not measured again. Who
    no longer wants it ends its process.
    """
    return wait_for(call, None)


@dataclass
class _Record:
    """What the rollout has seen since its base."""

    losses: list[float] = field(default_factory=list)
    rows: list[StepStats] = field(
        default_factory=list
    )  # the history of the run that adopts its end
    first_step: int = 0
    weights: list[Tensor] = field(default_factory=list)  # sum of the recent weights
    summed: int = 0
    high: int = 0
    diverged: bool = False
    seconds: float = 0.0


def slots_of(spec: TrainingRunSpec, workdir: Path) -> Slots:
    """The slots that all rollouts of a run share."""
    return Slots(workdir / "slots", spec.branching.max_concurrent_rollouts)


class Rollout:
    """Runs one job; everything it leaves behind is create-only."""

    def __init__(
        self,
        job: RolloutJob,
        spec: TrainingRunSpec,
        store: Store,
        workdir: Path,
        *,
        poll_seconds: float | None = None,
        park_seconds: float = math.inf,
    ) -> None:
        """poll_seconds: between two looks for the next wish; None: as often as the store's kind
        allows. park_seconds: so long it waits for one, then it leaves; another process begins at
        the base again.

        Raises CheckpointError where the base cannot be restored, DataError where the text is not the
        run's.
        """
        self.job, self.spec, self.store, self.workdir = job, spec, store, workdir
        by_store = _POLL_SECONDS if spec.storage.bucket is None else _BUCKET_POLL_SECONDS
        self._poll_seconds = by_store if poll_seconds is None else poll_seconds
        self._park_seconds = park_seconds
        published.fetch(store, spec.data, workdir / "tokens")
        self.engine = Engine(spec, job.run_uid, workdir, placement(spec))
        _patiently(lambda: identity.compare(store, self.engine.text))
        self.slots = slots_of(spec, workdir)
        scratch, admit = workdir / "scratch", partial(state.admit, self.engine)
        base = _patiently(lambda: checkpoint.fetch(store, job.base, scratch, job.run_uid, admit))
        state.restore(self.engine, base)
        self.engine.position.attempt = 0
        apply(self.engine, job.action)
        self.record = _Record(first_step=self.engine.position.step)
        self.base_loss = self.engine.position.loss

    def run(self) -> None:
        """From rung to rung until nobody asks for more."""
        for rung in self.job.rungs:
            if not self._asked_for(rung):
                return
            with self.slots.one():
                started = time.perf_counter()
                self._advance(self.job.trigger_step + rung)
                self.record.seconds += time.perf_counter() - started
                if not self._published(rung):
                    self._publish(rung)
                if self.engine.place.device.type == "cuda":
                    torch.cuda.empty_cache()  # a waiting rollout keeps its state, no more

    def _asked_for(self, rung: int) -> bool:
        """Wait until the operator wants this rung; False where it wants no more, or has not said
        so for too long.
        """
        key = keys.rollout_until(self.job.trigger_id, self.job.candidate)
        until = time.monotonic() + self._park_seconds
        while True:
            wish = _patiently(lambda: read_document(self.store, RolloutUntil, key))
            if wish is None or wish.until is None:
                return False
            if wish.until >= rung:
                return True
            if time.monotonic() >= until:
                _log.info("rollout.parked", candidate=self.job.candidate, before=rung)
                return False
            time.sleep(self._poll_seconds)

    def _published(self, rung: int) -> bool:
        """Whether a former process of this rollout has measured this rung."""
        key = keys.rollout_trial(self.job.trigger_id, self.job.candidate, rung)
        return _patiently(lambda: self.store.head(key)) is not None

    def _advance(self, target: int) -> None:
        """Step until the lineage stands at ``target``, or has diverged."""
        record, engine = self.record, self.engine
        steps = target - record.first_step
        count = max(1, min(MEAN_WEIGHTS, steps // 2))
        record.weights, record.summed = [], 0
        while engine.position.step < target and not record.diverged:
            stats = engine.step()
            crash.reach("step")
            if not math.isfinite(stats.loss):
                record.diverged = True
                return
            record.losses.append(stats.loss)
            record.rows.append(stats)
            over = self.base_loss is not None and stats.loss > self.base_loss + DIVERGED_NATS
            record.high = record.high + 1 if over else 0
            record.diverged = record.high >= DIVERGED_STEPS
            if engine.position.step > target - count:
                self._sum_weights()

    @torch.no_grad()
    def _sum_weights(self) -> None:
        """Add the present weights to the sum; one copy, whatever the count."""
        record, parameters = self.record, self.engine.parameters
        if not record.summed:
            record.weights = [p.detach().clone() for p in parameters]
        else:
            torch._foreach_add_(record.weights, [p.detach() for p in parameters])
        record.summed += 1

    def _publish(self, rung: int) -> None:
        record, job = self.record, self.job
        raw = mean = None
        ref: StateRef | None = None
        if not record.diverged:
            raw, mean = self.engine.evaluate(), self._mean_weights_loss()
            ref = self._publish_state(rung) if rung >= job.publish_from else None
        recent = record.losses[-_MOST_LOSSES:]
        trial = Trial(
            candidate=job.candidate,
            rung=rung,
            step=job.trigger_step + rung,
            status=TrialStatus.DIVERGED if record.diverged else TrialStatus.OK,
            validation_loss=raw if raw is not None and math.isfinite(raw) else None,
            mean_weights_loss=mean if mean is not None and math.isfinite(mean) else None,
            losses_from=record.first_step + len(record.losses) - len(recent),
            losses=tuple(recent),
            spike_steps=tuple(self.engine.spikes.flagged),
            steps_run=len(record.losses),
            seconds=record.seconds,
            state=ref,
        )
        try:
            key = keys.rollout_trial(job.trigger_id, job.candidate, rung)
            _patiently(lambda: put_document(self.store, key, trial))
        except AlreadyExists:
            _log.info("rollout.trial_already", rung=rung)  # a former process of this rollout
        _log.info("rollout.trial", candidate=job.candidate, rung=rung, loss=mean)

    @torch.no_grad()
    def _mean_weights_loss(self) -> float:
        """Validation loss with the mean of the last min(25, half the steps) weights (checkpoint
        averaging; it takes out most of what merely anneals).
        """
        kept = [p.detach().clone() for p in self.engine.parameters]
        for parameter, total in zip(self.engine.parameters, self.record.weights, strict=True):
            parameter.copy_(total / self.record.summed)
        self.record.weights = []
        try:
            return self.engine.evaluate()
        finally:
            for parameter, weight in zip(self.engine.parameters, kept, strict=True):
                parameter.copy_(weight)

    def _publish_state(self, rung: int) -> StateRef:
        """The state, after the rows of the steps that led to it."""
        folder = keys.rollout_state(self.job.trigger_id, self.job.candidate, rung)
        rows = history.encoded([stats_row(stats) for stats in self.record.rows])
        _patiently(lambda: self.store.put(keys.state_history(folder), rows))
        return _patiently(
            lambda: checkpoint.publish(
                self.store,
                state.snapshot(self.engine),
                folder,
                StateKind.ROLLOUT,
                self.workdir / "scratch",
                level=0,  # it is adopted or deleted within minutes
            )
        )
