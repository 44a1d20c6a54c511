"""I10 and I13 over random streams: what arrives twice, late, from a replaced attempt or an older
epoch, over reconnects and restarts of the monitor, counts once or not at all.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import StepStats
from forkcast_monitor.attempts import StaleAttemptError
from forkcast_monitor.config import DetectorConfig, configure
from forkcast_monitor.history import History
from forkcast_monitor.run import Accepted, WatchedRun
from forkcast_trainer.orders import Orders
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.statistics import read_history

CONFIG: DetectorConfig = configure(Uncertainty.model_validate({"window": 16, "warmupSteps": 8}))
COUNTS = {Accepted.FOLDED, Accepted.WAITING}


def stats(epoch: int, attempt: int, step: int) -> StepStats:
    loss = 3.0 + math.sin(step * (1 + epoch)) / 3
    return StepStats(
        run_uid="u",
        epoch=epoch,
        attempt=attempt,
        rank=0,
        step=step,
        loss=loss,
        grad_norm=1.0 + math.cos(step) / 4,
        grad_norm_clipped=1.0,
        learning_rate=1e-3,
        tokens=step,
    )


def monitor(folder: Path) -> WatchedRun:
    (folder / "monitor").mkdir(exist_ok=True)
    return WatchedRun(CONFIG, "u", folder / "monitor", History(folder / "statistics"))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: every case waits for the disk some twenty times."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


@dataclass
class Trainer:
    """What the trainer's side knows: its place, and what it has sent and not seen acknowledged."""

    epoch: int = 0
    attempt: int = 0
    start: int = 0
    base: int = 0
    step: int = 0
    waiting: list[StepStats] = field(default_factory=list)
    sent: list[StepStats] = field(default_factory=list)
    acknowledged: set[tuple[int, int, int]] = field(default_factory=set)
    story: list[tuple[Trainer, int]] = field(default_factory=list)  # places left, and where

    def hello(self, run: WatchedRun) -> None:
        """As the reporter: from the oldest record not acknowledged; the monitor may know more."""
        first = self.waiting[0].step if self.waiting else self.step
        wanted = run.hello(self.epoch, first, self.base, 1000, self.attempt)
        for one in [one for one in self.waiting if one.step < wanted]:
            self.waiting.remove(one)
            self.acknowledged.add((one.epoch, one.attempt, one.step))

    def move(self, epoch: int, attempt: int, start: int, base: int) -> None:
        """Another attempt or epoch begins at ``start``; what was not acknowledged is lost."""
        self.story.append((replace(self), self.step))
        self.epoch, self.attempt, self.start, self.base = epoch, attempt, start, base
        self.step, self.waiting = start, []


def play(run: WatchedRun, folder: Path, chaos: random.Random) -> tuple[WatchedRun, Trainer]:
    """A random life of trainer, link and monitor; ends with everything delivered."""
    trainer = Trainer()
    trainer.hello(run)
    for _ in range(chaos.randint(4, 16)):
        match chaos.choice(
            ["steps"] * 3 + ["again", "stale", "connect", "kill", "restart", "fork"]
        ):
            case "steps":
                batch = [
                    stats(trainer.epoch, trainer.attempt, trainer.step + n)
                    for n in range(chaos.randint(1, 6))
                ]
                trainer.step += len(batch)
                trainer.waiting += batch
                deliver(run, trainer, chaos)
            case "again" if trainer.sent:  # a copy that a broken link delivers late
                run.accept(chaos.choice(trainer.sent))
            case "stale" if trainer.story:
                former = chaos.choice(trainer.story)[0]
                with pytest.raises(StaleAttemptError):
                    run.hello(former.epoch, former.start, former.base, 1000, former.attempt)
            case "connect":
                trainer.hello(run)
            case "kill":  # the monitor: what was accepted is on disk, nothing else is left
                run = monitor(folder)
                trainer.hello(run)
            case "restart":  # the trainer, from an older state of this epoch
                back = chaos.randint(trainer.start, trainer.step)
                trainer.move(trainer.epoch, trainer.attempt + 1, back, trainer.base)
                trainer.hello(run)
            case "fork" if trainer.step > trainer.start:
                base = chaos.randint(trainer.start, trainer.step)
                ahead = base + chaos.randint(0, 5)
                trainer.move(trainer.epoch + 1, trainer.attempt, ahead, base)
                trainer.hello(run)
    while trainer.waiting:
        deliver(run, trainer, chaos)
    return run, trainer


def deliver(run: WatchedRun, trainer: Trainer, chaos: random.Random) -> None:
    """Send what waits, a little out of order and some of it twice; the whole is acknowledged."""
    batch = list(trainer.waiting)
    for i in range(len(batch) - 1):
        if chaos.random() < 0.3:
            batch[i], batch[i + 1] = batch[i + 1], batch[i]
    for one in batch:
        times = 1 + (chaos.random() < 0.3)
        counted = [run.accept(one) in COUNTS for _ in range(times)]
        assert sum(counted) == 1, one.key  # I10, at the door
    trainer.sent += batch
    trainer.acknowledged |= {(one.epoch, one.attempt, one.step) for one in batch}
    trainer.waiting = []


def straight(trainer: Trainer, rows: list[dict], folder: Path) -> WatchedRun:
    """Another monitor, which saw the lineage's records once, in order, and nothing else."""
    run = monitor(folder)
    recorded = {(row["epoch"], row["attempt"], row["step"]) for row in rows}
    for place, end in [*trainer.story, (trainer, trainer.step)]:
        run.hello(place.epoch, place.start, place.base, 1000, place.attempt)
        for step in range(place.start, end):
            if (place.epoch, place.attempt, step) in recorded:
                run.accept(stats(place.epoch, place.attempt, step))
    return run


@settings(max_examples=500)
@given(st.integers(0, 2**32))
def test_an_acknowledged_step_counts_once_whatever_the_link_does(seed) -> None:
    with scratch() as one, scratch() as other:
        run, trainer = play(monitor(Path(one)), Path(one), random.Random(seed))
        assert (run.epoch, run.attempt) == (trainer.epoch, trainer.attempt)  # I13
        assert run.next_step == trainer.step
        rows = [*read_history(Path(one) / "statistics")]
        counts = Counter((row["epoch"], row["step"]) for row in rows)
        assert max(counts.values(), default=1) == 1
        stands = {
            (trainer.epoch, trainer.attempt, step) for step in range(trainer.start, trainer.step)
        }
        assert stands <= {(row["epoch"], row["attempt"], row["step"]) for row in rows}
        assert stands <= trainer.acknowledged
        again = straight(trainer, rows, Path(other))
        assert run.detector.state() == again.detector.state()
        assert [one.id for one in run.triggers] == [one.id for one in again.triggers]


@settings(max_examples=500)
@given(st.lists(st.integers(0, 6), max_size=20), st.booleans())
def test_no_order_takes_a_trainer_to_an_older_epoch(epochs, foreign) -> None:
    orders, newest = Orders("u"), 0
    for epoch in epochs:
        collapse = pb.Collapse(branch="b", epoch=epoch, decision_digest=str(epoch))
        uid = "another" if foreign else "u"
        orders.hear(pb.Directive(id=f"collapse/{epoch}", run_uid=uid, collapse=collapse))
        newest = newest if foreign else max(newest, epoch)
        assert orders.epoch == newest
