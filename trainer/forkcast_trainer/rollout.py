"""One rollout: restore a base, apply an action, run from rung to rung, publish what was measured.

It replays base -> trigger under its action, then runs on; at each rung it validates, publishes its end
state (if that can be adopted) and then the trial, and waits to be asked for more. It never writes
anything that the main run reads except those.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
import torch

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, Trial, TrialStatus
from forkcast_trainer import checkpoint, state
from forkcast_trainer.apply import apply
from forkcast_trainer.course import Course
from forkcast_trainer.data import identity, published
from forkcast_trainer.placement import placement
from forkcast_trainer.resume import SavedStates
from forkcast_trainer.slots import Slots
from forkcast_trainer.step import Engine
from forkcast_wire import history, keys
from forkcast_wire.documents import RolloutJob, RolloutUntil
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.statistics import stats_row
from forkcast_wire.store import AlreadyExists, put_document, read_document, wait_for

T = TypeVar("T")
_log = structlog.get_logger()
_POLL_SECONDS, _BUCKET_POLL_SECONDS = 0.05, 1.0
_MOST_LOSSES = 1024


def _patiently(call: Callable[[], T]) -> T:
    """A rollout outlives an outage of its store: what it has measured is not measured again. Who
    no longer wants it ends its process.
    """
    return wait_for(call, None)


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
        tokens = published.prepared(
            store, spec.data, workdir / "tokens", progress=False, storage=spec.storage
        )
        self.engine = Engine(spec, job.run_uid, workdir, placement(spec), tokens)
        _patiently(lambda: identity.compare(store, self.engine.text))
        self.slots = slots_of(spec, workdir)
        states = SavedStates(self.engine, store, workdir)
        state.restore(self.engine, _patiently(lambda: states.fetch(job.base)))
        self.engine.position.attempt = 0
        apply(self.engine, job.action)
        self.course = Course(self.engine)
        self.seconds = 0.0

    def run(self) -> None:
        """From rung to rung until nobody asks for more."""
        for rung in self.job.rungs:
            if not self._asked_for(rung):
                return
            with self.slots.one():
                started = time.perf_counter()
                self.course.run_to(self.job.trigger_step + rung)
                self.seconds += time.perf_counter() - started
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

    def _publish(self, rung: int) -> None:
        course, job = self.course, self.job
        raw, mean = course.validate()
        publishes = rung >= job.publish_from and not course.diverged
        recent = [row.loss for row in course.rows[-_MOST_LOSSES:]]
        trial = Trial(
            candidate=job.candidate,
            rung=rung,
            step=job.trigger_step + rung,
            status=TrialStatus.DIVERGED if course.diverged else TrialStatus.OK,
            validation_loss=raw if math.isfinite(raw) else None,
            mean_weights_loss=mean if math.isfinite(mean) else None,
            losses_from=course.first_step + len(course.rows) - len(recent),
            losses=tuple(recent),
            spike_steps=tuple(course.spikes.flagged),
            steps_run=len(course.rows),
            seconds=self.seconds,
            state=self._publish_state(rung) if publishes else None,
        )
        try:
            key = keys.rollout_trial(job.trigger_id, job.candidate, rung)
            _patiently(lambda: put_document(self.store, key, trial))
        except AlreadyExists:
            _log.info("rollout.trial_already", rung=rung)  # a former process of this rollout
        _log.info("rollout.trial", candidate=job.candidate, rung=rung, loss=trial.mean_weights_loss)

    def _publish_state(self, rung: int) -> StateRef:
        """The state, after the rows of the steps that led to it."""
        folder = keys.rollout_state(self.job.trigger_id, self.job.candidate, rung)
        rows = history.encoded([stats_row(stats) for stats in self.course.rows])
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
