"""Who reported when: attempts and epochs of one run, and the lineage that follows from them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forkcast_wire import crash
from forkcast_wire.statistics import read_history

#: No limit on a step.
ALL = 1 << 62


class StaleAttemptError(ValueError):
    """A trainer that a later attempt, or a later epoch, has replaced."""


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One start of the trainer within an epoch: its first step, and, where the epoch was opened by
    a collapse, the step of the winner's base.
    """

    epoch: int
    attempt: int
    start_step: int
    base_step: int


class Attempts:
    """All attempts of a run in order, durable in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = json.loads(path.read_text()) if path.exists() else []
        self._all = sorted(Attempt(**row) for row in rows)

    @property
    def current(self) -> Attempt | None:
        """The latest attempt of the latest epoch."""
        return self._all[-1] if self._all else None

    def known(self, epoch: int, attempt: int) -> bool:
        """Whether that attempt has said hello before."""
        return any((one.epoch, one.attempt) == (epoch, attempt) for one in self._all)

    def add(self, new: Attempt) -> None:
        """Record an attempt, once. Raises StaleAttemptError where a later one is known."""
        latest = self.current
        if latest is not None and (new.epoch, new.attempt) < (latest.epoch, latest.attempt):
            raise StaleAttemptError(
                f"epoch {new.epoch} attempt {new.attempt}: replaced by epoch {latest.epoch} "
                f"attempt {latest.attempt}"
            )
        if self.known(new.epoch, new.attempt):
            return
        rows: list[dict[str, Any]] = [asdict(one) for one in [*self._all, new]]
        partial = self._path.with_suffix(".part")
        with partial.open("w") as file:
            json.dump(rows, file)
            file.flush()
            os.fsync(file.fileno())
        crash.reach("before-attempt")
        partial.replace(self._path)
        crash.reach("after-attempt")
        self._all.append(new)

    def opening(self, epoch: int) -> Attempt | None:
        """The first attempt of an epoch."""
        return next((one for one in self._all if one.epoch == epoch), None)

    def limits(self, epoch: int) -> dict[int, int]:
        """By epoch, oldest first: the steps before this one belong to the lineage of ``epoch``."""
        limits, limit = {epoch: ALL}, ALL
        for one in range(epoch, 0, -1):
            opening = self.opening(one)
            limit = min(limit, opening.base_step if opening else 0)
            limits[one - 1] = limit
        return dict(sorted(limits.items()))

    def stands(self, epoch: int, attempt: int, step: int) -> bool:
        """Whether no later attempt of that epoch took the step again."""
        return not any(
            one.epoch == epoch and one.attempt > attempt and one.start_step <= step
            for one in self._all
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
