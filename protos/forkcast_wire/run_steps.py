"""A run's steps, from both histories: as the monitor judged them, and from the store what it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast.adoption import adopted_trial, losses_by_step
from forkcast.decision import Decision
from forkcast.lineage import LineageEntry, limits
from forkcast.ports import Store
from forkcast_wire import history
from forkcast_wire.statistics import read_history

#: A row of a history, see docs/statistics.md.
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunSteps:
    """The rows of rank 0 by (epoch, step), each step of an epoch once.

    own: the steps of the main run, the abandoned ones too. adopted: those that an adopted rollout
    took; they belong to the epoch that it opened.
    """

    own: list[Row]
    adopted: list[Row]


def read_steps(statistics: Path, store: Store, lineage: Sequence[LineageEntry]) -> RunSteps:
    """Read both histories. statistics: the monitor's folder; it need not exist. Raises HistoryError,
    StoreError.
    """
    return joined(read_history(statistics), history.read(store), lineage)


def joined(
    judged: Iterable[Row], stored: Iterable[Row], lineage: Iterable[LineageEntry]
) -> RunSteps:
    """judged: the monitor's rows; stored: the trainer's, those of adopted rollouts among them."""
    seen = [row for row in judged if row["rank"] == 0]
    known = {_place(row) for row in seen}
    begins = {entry.epoch: entry.state.step for entry in lineage}
    rest = [row for row in stored if row["rank"] == 0 and _place(row) not in known]
    taken = [row for row in rest if row["step"] < begins.get(row["epoch"], 0)]
    own = [row for row in rest if row["step"] >= begins.get(row["epoch"], 0)]
    return RunSteps(sorted([*seen, *own], key=_place), sorted(taken, key=_place))


def with_recorded_losses(
    adopted: Iterable[Row],
    lineage: Iterable[LineageEntry],
    decisions: Sequence[Decision],
) -> list[Row]:
    """The adopted steps by (epoch, step); those that no history has are from their decision, which
    kept their losses alone.
    """
    rows = {_place(row): row for row in adopted}
    for entry in lineage:
        trial = adopted_trial(decisions, entry)
        for step, loss in losses_by_step(trial) if trial is not None else ():
            place = (entry.epoch, step)
            if entry.base_step <= step < entry.state.step and place not in rows:
                bare = {"run_uid": entry.run_uid, "attempt": 0, "rank": 0, "loss": loss}
                rows[place] = {**bare, "epoch": entry.epoch, "step": step}
    return [rows[place] for place in sorted(rows)]


def abandoned(lineage: Sequence[LineageEntry], row: Mapping[str, Any]) -> bool:
    """Whether a collapse went back behind the step: the newest state does not rest on it."""
    newest = max((entry.epoch for entry in lineage), default=0)
    epoch = row["epoch"]
    return bool(epoch < newest and row["step"] >= limits(lineage, newest).get(epoch, 0))


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["epoch"], row["step"]
