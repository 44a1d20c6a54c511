"""The steps that a rollout took and an epoch adopted: they are training, and stand in its decision."""

from __future__ import annotations

from collections.abc import Iterable

from forkcast.decision import Decision
from forkcast.lineage import LineageEntry
from forkcast.records import Trial


def losses_by_step(trial: Trial) -> list[tuple[int, float]]:
    """(lineage step, loss in nats/token) of a trial, at most its last 1,024."""
    return list(enumerate(trial.losses, start=trial.losses_from))


def adopted_trial(decisions: Iterable[Decision], entry: LineageEntry | None) -> Trial | None:
    """The trial whose end state opened an epoch; None if no decision has it."""
    if entry is None:
        return None
    for decision in decisions:
        for trial in decision.trials:
            if trial.state is not None and trial.state.key == entry.state.key:
                return trial
    return None
