"""How long until the next look at a run that no event asks for. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Final

from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.run_facts import RunFacts, former_status
from forkcast_operator.kubernetes.run_state import run_state
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import RunState

#: With a branch open, while training, and otherwise.
_BRANCH_SECONDS: Final = 2.0
_RUNNING_SECONDS: Final = 10.0
STARTING_SECONDS: Final = 5.0
RESYNC_SECONDS: Final = 300.0
#: While a person is needed.
REFUSED_SECONDS: Final = 60.0


def pause(run: Run, spec: TrainingRunSpec, facts: RunFacts, now: dt.datetime) -> float:
    """Seconds until the next look."""
    state, _ = run_state(run, spec, facts, now)
    if facts.failure is not None:
        idle = facts.failure.stalled and state is RunState.PENDING
        return REFUSED_SECONDS if idle else STARTING_SECONDS
    if state is RunState.BRANCHING:
        return _BRANCH_SECONDS
    if facts.store is not None and None in facts.store.outcomes.values():
        return _BRANCH_SECONDS
    if state in (RunState.RUNNING, RunState.NO_PROGRESS):
        return _RUNNING_SECONDS
    if state in (RunState.SUSPENDED, RunState.COMPLETED, RunState.FAILED):
        return _until_ttl(spec, state, run, now) or RESYNC_SECONDS
    return STARTING_SECONDS


def _until_ttl(spec: TrainingRunSpec, state: RunState, run: Run, now: dt.datetime) -> float | None:
    ttl, ended = spec.lifecycle.ttl_seconds_after_finished, former_status(run).completion_time
    if ttl is None or ended is None or state is RunState.SUSPENDED:
        return None
    return max(1.0, ttl - (now - ended).total_seconds())
