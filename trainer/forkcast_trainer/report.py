"""What rank 0 tells of an attempt; the other ranks tell nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forkcast.lineage import LineageEntry
from forkcast.records import StepStats
from forkcast_trainer.progress import Progress
from forkcast_trainer.resume import Beginning
from forkcast_trainer.run_end import RunEnd
from forkcast_trainer.saver import Saver
from forkcast_trainer.step import Engine
from forkcast_wire.reporting import Hello, Reporter


class Report:
    """Every step to the monitor and into the run's history; how far the run is into progress.json.

    validation_loss: the last one of this epoch, nats/token; None if there is none yet.
    """

    def __init__(
        self,
        engine: Engine,
        workdir: Path,
        monitor: str,
        *,
        begun: Beginning,
        saver: Saver | None,
        end: RunEnd,
    ) -> None:
        """monitor: its gRPC target, '' for none. begun: what the attempt begins with. saver: rank 0's,
        None for the others, which tell nothing.
        """
        self._engine, self._saver, self._end = engine, saver, end
        self._durable_step = None if begun.ref is None else engine.position.step
        hello = self._hello(begun.base_step)
        self.reporter = Reporter(monitor if saver is not None else "", hello)
        total, device = engine.spec.training.total_steps, str(engine.place.device)
        self._progress = Progress(workdir, total, device, engine.position.tokens)
        self.validation_loss: float | None = None

    def _hello(self, base_step: int) -> Hello:
        position = self._engine.position
        return Hello(
            run_uid=self._engine.run_uid,
            epoch=position.epoch,
            attempt=position.attempt,
            rank=self._engine.place.rank,
            start_step=position.step,
            total_steps=self._engine.spec.training.total_steps,
            base_step=base_step,
        )

    @property
    def word(self) -> str:
        """The last word told, '' if there was none."""
        return self._progress.word

    def step(self, stats: StepStats, validation: float | None) -> None:
        """A step that was taken, and the validation loss if it was validated after it."""
        if self._saver is None:
            return
        if validation is not None:
            stats = replace(stats, validation_loss=validation)
        self.reporter.saves_skipped = self._saver.skipped
        self.reporter.report(stats)
        self._saver.record(stats)
        self._saver.note_step(stats.step + 1, epoch=stats.epoch, healthy=not stats.skipped)

    def adopted(self, entry: LineageEntry) -> None:
        """The run goes on in another epoch, from the state it was opened with."""
        position = self._engine.position
        self._durable_step, self.validation_loss = position.step, None
        self.reporter.new_epoch(self._hello(entry.base_step))
        if self._saver is not None:
            self._saver.new_epoch()
            self._saver.adopted(entry, position.attempt)

    def progress(self, word: str, *, force: bool = False) -> None:
        """word, force: as `Progress.tell` has them."""
        if self._saver is None:
            return
        engine = self._engine
        self._progress.tell(
            word,
            engine.position,
            engine.actions,
            rate=engine.rates(engine.position.step)[0],
            passes=engine.passes(),
            validation_loss=self.validation_loss,
            dropped=self.reporter.dropped,
            saved_step=self._saved_step(self._saver),
            saves_skipped=self._saver.skipped,
            save_error=self._saver.error or self._end.save_error,
            history_gap=self._saver.gap,
            end_error=self._saver.end_error,
            force=force,
        )

    def _saved_step(self, saver: Saver) -> int | None:
        """The newest step of this epoch that a store holds: resumed from, adopted, or saved."""
        saved = saver.newest_step(self._engine.position.epoch)
        return max((step for step in (saved, self._durable_step) if step is not None), default=None)

    def close(self, word: str, seconds: float) -> None:
        """The last word. seconds: what is pending gets them at most."""
        if self._saver is None:
            return
        self.progress(word, force=True)
        self.reporter.close()
        self._saver.close(seconds)
