"""The training run, top to bottom: start, step, save, listen, adopt, end."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from forkcast_trainer.boundary import Boundary
from forkcast_trainer.data import published
from forkcast_trainer.orders import Order
from forkcast_trainer.placement import placement
from forkcast_trainer.report import Report
from forkcast_trainer.resume import SavedStates, claim_text
from forkcast_trainer.run_end import LEAVE_SECONDS, End, RunEnd
from forkcast_trainer.saver import Saver
from forkcast_trainer.staging import SHARED, Staging
from forkcast_trainer.step import Engine
from forkcast_wire import beats, crash, keys
from forkcast_wire.documents import RunInfo, load
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import open_store, wait_for


class TrainingRun:
    """One attempt of a run on one rank. leads: whether it is rank 0."""

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
        """monitor: its gRPC target, '' for none. stop: set when the process is to leave. ranks: (rank,
        world, local).

        Raises TrainerError, DataError, NoUsableStateError, StoreError.
        """
        self.spec, self.workdir = spec, workdir
        info = load(RunInfo, (workdir / keys.RUN).read_bytes())
        store = wait_for(lambda: open_store(spec.storage, workdir), stop)
        place = placement(spec, *ranks)
        self.leads, folder = place.rank == 0, workdir / "tokens"
        tokens = published.prepared(
            store, spec.data, folder, progress=self.leads, storage=spec.storage
        )
        self.engine = Engine(spec, info.uid, workdir, place, tokens)
        self.engine.position.attempt = attempt
        claim_text(self.engine, store, stop)
        states = SavedStates(self.engine, store, workdir)
        begun = states.resume(stop)
        if self.leads:
            published.publish_aside(store, tokens.files)
        self.saver: Saver | None = None
        if self.leads:
            staging = Staging(place.device)
            self.engine.before_update = staging.wait
            shared = spec.storage if SHARED else None
            self.saver = Saver(store, workdir, spec.checkpoint, staging=staging, storage=shared)
        if self.saver is not None and begun.opened is not None:
            self.saver.adopted(begun.opened, attempt)
        if self.saver is not None and begun.ref is not None:
            self.saver.resumed(begun.ref)
        self.end = RunEnd(self.engine, place, self.saver)
        self.report = Report(
            self.engine, workdir, monitor, begun=begun, saver=self.saver, end=self.end
        )
        self.boundary = Boundary(
            self.engine, states, stop, saver=self.saver, report=self.report, end=self.end
        )

    def run(self) -> bool:
        """Train to the last step. True if the run is complete; False if it was stopped, or its end
        could not be recorded.
        """
        boundary, total = self.boundary, self.spec.training.total_steps
        phase = beats.Phase.FIRST_STEP
        while True:
            beats.beat(phase, self.engine.position.step)
            agreed = boundary.agreed()
            if agreed.pauses or self.engine.position.step >= total:
                self.engine.settle()
                self._tell(None)
            if agreed.save is not None:
                boundary.save(agreed.save)
            if agreed.order is Order.STOP:
                return self._leave()
            if agreed.collapse and boundary.adopt():
                continue
            if agreed.order is Order.WAIT:
                boundary.wait(agreed.order)
            elif agreed.order is Order.HOLD:
                self._hold()
                boundary.wait(agreed.order)
            elif self.engine.position.step >= total:
                if self._complete():
                    return self.end.unrecorded is None
            else:
                self.engine.step()
                crash.reach("step")
                self._after(self.engine.position.step)
                phase = beats.Phase.STEP

    def _after(self, step: int) -> None:
        """The steps before ``step`` are taken; on a GPU the statistics of the last are on their way."""
        self._tell(self._validate(step))
        self.boundary.after(step)
        self.report.progress("running")

    def _tell(self, validation: float | None) -> None:
        """What has come of the steps taken. validation: after the last of them."""
        told = self.engine.told()
        for stats in told[:-1]:
            self.report.step(stats, None)
        for stats in told[-1:]:
            self.report.step(stats, validation)

    def _validate(self, step: int) -> float | None:
        rules, total = self.spec.data.validation, self.spec.training.total_steps
        if step == total or (step % rules.every_steps and step % rules.full_every_steps):
            return None  # the last step is followed by the full evaluation of the end
        self.engine.settle()
        full = step % rules.full_every_steps == 0
        with beats.during(beats.Phase.EVALUATE):
            self.report.validation_loss = self.engine.evaluate(full=full)
        return self.report.validation_loss

    def _hold(self) -> None:
        if self.report.word != "held" and self.engine.place.device.type == "cuda":
            torch.cuda.empty_cache()  # the rollouts need the room
        self.report.progress("held")

    def _leave(self) -> bool:
        """SIGTERM: save what there is and go."""
        self.end.leave()
        self.report.close("stopped", 1.0)
        return False

    def _complete(self) -> bool:
        """The last step is taken. False if its end has to be tried again: the store does not take it
        now.
        """
        end = self.end.complete()
        if end is End.NOT_YET:
            self.report.progress("ending")
            return False
        self.report.validation_loss = self.end.loss
        if end is End.RECORDED:
            self.report.close("finished", LEAVE_SECONDS)
        else:
            self.report.close("unrecorded", 1.0)
        return True
