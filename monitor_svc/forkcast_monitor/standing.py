"""How a run stands after a batch."""

from __future__ import annotations

from typing import NamedTuple

from forkcast.records import Event, Index, StepStats
from forkcast_monitor.run import WatchedRun


class Standing(NamedTuple):
    """Where a run stood after a batch: kept for every run, a message only for those who ask."""

    epoch: int
    attempt: int
    next_step: int
    total_steps: int
    last: StepStats | None
    judged: Index | None
    over_threshold: bool | None
    triggers: int
    last_trigger_step: int | None
    events: int
    last_event: Event | None


def standing(run: WatchedRun) -> Standing:
    """Where a run stands now."""
    index, triggers = run.detector.last, run.triggers
    return Standing(
        run.epoch,
        run.attempt,
        run.next_step,
        run.total_steps,
        run.last(),
        index,
        run.detector.over_threshold if index is not None and index.ready else None,
        len(triggers),
        triggers[-1].step if triggers else None,
        run.detector.events,
        run.detector.last_event,
    )
