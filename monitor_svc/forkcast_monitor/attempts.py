"""Who reported when: attempts and epochs of one run, and the lineage that follows from them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from forkcast import lineage
from forkcast_monitor.budget import OverBudgetError
from forkcast_wire import crash
from forkcast_wire.fields import MOST_EPOCHS, MOST_STEPS
from forkcast_wire.files import replaced
from forkcast_wire.statistics import read_history

_log = structlog.get_logger()
#: No limit on a step.
ALL = 1 << 62
#: A trainer takes the next number at each start, so that some are missing here; never so many.
MOST_ATTEMPT, _MOST_SKIPPED = 1_000_000, 10_000
#: Attempts on record of one run; what a later one has replaced altogether does not count.
MOST_KEPT = 10_000


class StaleAttemptError(ValueError):
    """A trainer that a later attempt, or a later epoch, has replaced."""


class ImpossibleAttemptError(ValueError):
    """No trainer of this run says such a hello; the message names the field and its bound."""


class TooManyAttemptsError(OverBudgetError):
    """The run has used up its attempts."""

    def __init__(self) -> None:
        super().__init__("attempts", f"{MOST_KEPT} attempts of this run are on record")


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One start of the trainer within an epoch: its first step, and, if the epoch was opened by a
    collapse, the step of the winner's base.
    """

    epoch: int
    attempt: int
    start_step: int
    base_step: int


def _recorded(path: Path) -> list[Attempt]:
    """What the file holds; nothing if it is damaged: the attempts to come are recorded anew."""
    try:
        return [Attempt(**row) for row in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        _log.error("monitor.attempts_damaged", path=str(path), error=str(error))
        return []


class Attempts:
    """All attempts of a run in order, durable in one file. What it costs depends on how many there
    are, never on the numbers in them: those come from a peer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: list[Attempt] = []
        unsound = 0
        for row in sorted(_recorded(path)):
            try:
                check(row, self.current)
            except ImpossibleAttemptError:  # written by a monitor that checked less
                unsound += 1
            else:
                self._all.append(row)
        if unsound:
            _log.warning("monitor.attempts_dropped", path=str(path), count=unsound)
        self._index()

    def _index(self) -> None:
        self._keys = {(one.epoch, one.attempt) for one in self._all}
        self._by_epoch: dict[int, list[Attempt]] = {}
        for one in self._all:
            self._by_epoch.setdefault(one.epoch, []).append(one)
        self._limits: dict[int, dict[int, int]] = {}

    @property
    def current(self) -> Attempt | None:
        """The latest attempt of the latest epoch."""
        return self._all[-1] if self._all else None

    def known(self, epoch: int, attempt: int) -> bool:
        """Whether that attempt has said hello before."""
        return (epoch, attempt) in self._keys

    def add(self, new: Attempt) -> None:
        """Record an attempt, once. Raises StaleAttemptError if a later one is known,
        ImpossibleAttemptError, TooManyAttemptsError, OSError; then nothing has changed.
        """
        latest = self.current
        if latest is not None and (new.epoch, new.attempt) < (latest.epoch, latest.attempt):
            raise StaleAttemptError(
                f"epoch {new.epoch} attempt {new.attempt}: replaced by epoch {latest.epoch} "
                f"attempt {latest.attempt}"
            )
        if self.known(new.epoch, new.attempt):
            return
        check(new, latest)
        kept = [one for one in self._all if not self._replaced(one, new)]
        if len(kept) >= MOST_KEPT:
            raise TooManyAttemptsError
        rows: list[dict[str, Any]] = [asdict(one) for one in [*kept, new]]
        with replaced(self._path) as file:
            file.write(json.dumps(rows).encode())
            crash.reach("before-attempt")
        crash.reach("after-attempt")
        self._all = [*kept, new]
        self._index()

    def _replaced(self, old: Attempt, new: Attempt) -> bool:
        """Whether ``new`` takes all steps of ``old`` again: no row of it stands any longer."""
        return (
            old.epoch == new.epoch
            and old.start_step >= new.start_step
            and old is not self.opening(old.epoch)
        )

    def opening(self, epoch: int) -> Attempt | None:
        """The first attempt of an epoch."""
        return next(iter(self._by_epoch.get(epoch, ())), None)

    def openings_between(self, before: int, epoch: int) -> list[Attempt]:
        """The first attempts of the epochs after ``before`` up to ``epoch``, in order."""
        return [found[0] for e, found in self._by_epoch.items() if before < e <= epoch]

    def limits(self, epoch: int) -> dict[int, int]:
        """By epoch, oldest first: the steps before this one belong to the lineage of ``epoch``."""
        if epoch not in self._limits:
            openings = [found[0] for found in self._by_epoch.values()]
            earlier = lineage.limits(openings, epoch)
            self._limits = {epoch: dict(sorted({**earlier, epoch: ALL}.items()))}
        return dict(self._limits[epoch])

    def limit(self, epoch: int, of: int) -> int:
        """That of the earlier epoch ``of`` alone; 0 if nothing of it belongs."""
        if epoch not in self._limits:
            self.limits(epoch)
        return self._limits[epoch].get(of, 0)

    def stands(self, epoch: int, attempt: int, step: int) -> bool:
        """Whether no later attempt of that epoch took the step again."""
        return not any(
            one.attempt > attempt and one.start_step <= step
            for one in self._by_epoch.get(epoch, ())
        )

    def rows(
        self, folder: Path, limits: dict[int, int], first_steps: dict[int, int]
    ) -> list[dict[str, Any]]:
        """The lineage's history rows from ``first_steps`` on, in order."""
        return [
            row
            for row in read_history(folder, first_steps)
            if row["rank"] == 0
            and row["step"] < limits.get(row["epoch"], 0)
            and self.stands(row["epoch"], row["attempt"], row["step"])
        ]


def check(new: Attempt, latest: Attempt | None) -> None:
    """Whether a trainer may say so after ``latest``, None if nothing is known of the run. Epochs
    rise by one: the next is opened by a trigger, which needs a monitor that knew the last.
    Raises ImpossibleAttemptError.
    """
    epoch = MOST_EPOCHS if latest is None else min(MOST_EPOCHS, latest.epoch + 1)
    attempt = MOST_ATTEMPT
    if latest is not None:
        attempt = min(MOST_ATTEMPT, latest.attempt + _MOST_SKIPPED)
    for name, value, most in (
        ("epoch", new.epoch, epoch),
        ("attempt", new.attempt, attempt),
        ("start_step", new.start_step, MOST_STEPS),
        ("base_step", new.base_step, new.start_step),
    ):
        if not 0 <= value <= most:
            raise ImpossibleAttemptError(f"{name}: at most {most} here, got {value}")
