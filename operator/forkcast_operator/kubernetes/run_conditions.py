"""The conditions of a TrainingRun: one function a condition, one row a function. Pure.

Each condition has a reason and a sentence of its own. Sentences stay the same while nothing
changes, since a change of words is a write of the status: figures stand in the status itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.run_facts import RunFacts
from forkcast_operator.kubernetes.run_state import open_branch
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.resources import (
    TRANSIENT,
    Condition,
    ConditionStatus,
    RunCondition,
    RunState,
    set_condition,
)

_MOST_TEXT: Final = 1000
_READY: Final = (RunState.RUNNING, RunState.BRANCHING, RunState.COMPLETED)
_PASSING: Final = (
    RunState.PENDING,
    RunState.STARTING,
    RunState.RESTARTING,
    RunState.SUSPENDING,
)
#: A checkpoint is late once so many of its intervals have passed without one.
_LATE_INTERVALS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the conditions are judged by. before: the conditions of the last
    status, by type.
    """

    run: Run
    spec: TrainingRunSpec | None
    facts: RunFacts
    state: RunState
    message: str
    before: Mapping[str, Condition]


@dataclass(frozen=True, slots=True)
class Said:
    """One condition. holds: None for Unknown."""

    holds: bool | None
    reason: str
    message: str


def _yes(reason: str, message: str) -> Said:
    return Said(holds=True, reason=reason, message=message)


def _no(reason: str, message: str) -> Said:
    return Said(holds=False, reason=reason, message=message)


def _unknown(reason: str, message: str) -> Said:
    return Said(holds=None, reason=reason, message=message)


def conditions(case: Case, before: Sequence[Condition], now: dt.datetime) -> list[Condition]:
    """All conditions of the run. What this look could not see keeps its last word."""
    kept = [one for one in before if one.type not in TRANSIENT]
    for kind, row in ROWS.items():
        if (said := row(case)) is None:
            continue
        status = ConditionStatus.UNKNOWN
        if said.holds is not None:
            status = ConditionStatus.TRUE if said.holds else ConditionStatus.FALSE
        transition = [one for one in before if one.type == kind and kind in TRANSIENT]
        kept = set_condition(
            [*kept, *transition],
            kind,
            status,
            said.reason,
            said.message[:_MOST_TEXT],
            generation=case.run.generation,
            now=now,
        )
    return kept


def _ready(case: Case) -> Said:
    """Whether the run trains as it should, or has come to its end."""
    failure = case.facts.failure
    if failure is not None and (case.state is not RunState.FAILED or case.facts.retry):
        return _no(failure.reason, failure.message)
    message = case.message
    if case.state in (RunState.COMPLETED, RunState.FAILED):
        message = f"no pod runs: {message}"
    return Said(case.state in _READY, case.state.value, message)


def _suspended(case: Case) -> Said:
    asked = case.spec is not None and case.spec.suspend
    if case.state is RunState.SUSPENDED:
        return _yes("SuspendedBySpec", "spec.suspend is true and no pod is left")
    if case.state is RunState.SUSPENDING:
        return _no("PodsLeaving", "spec.suspend is true; pods save and leave")
    if asked:
        return _no("RunEnded", "spec.suspend is true; the run had ended before")
    return _no("NotAsked", "spec.suspend is false")


def _branching(case: Case) -> Said | None:
    facts = case.facts
    if facts.store is None:
        if RunCondition.BRANCHING in case.before:
            return None
        return _unknown("StoreNotRead", "not known before the store is read: open branches")
    name = open_branch(case.run, facts)
    if name is None:
        return _no("NoBranchOpen", "no branch is open")
    if case.spec is not None and case.spec.suspend:
        return _yes("BranchSuspended", f"{name} stands still while the run is suspended")
    if facts.rollouts is not None:
        return _yes(facts.rollouts.reason, f"{name}: {facts.rollouts.message}")
    return _yes("BranchOpen", f"{name} is open")


def _stable(case: Case) -> Said:
    summary = case.facts.summary
    if case.spec is not None and case.spec.branching.mode is Mode.DISABLED:
        return _unknown("NotWatched", "spec.branching.mode is Disabled")
    if summary is None:
        untold = "the monitor has not told of this run"
        trouble = case.facts.monitor_trouble
        return _unknown("NotReported", f"{untold}: {trouble}" if trouble else untold)
    if not summary.HasField("over_threshold"):
        return _unknown("WarmingUp", "the index has no healthy spread to be compared with yet")
    if summary.over_threshold:
        return _no("OverThreshold", "the run has departed from its course: see status.uncertainty")
    return _yes("BelowThreshold", "no departure is open")


def _checkpoint(case: Case) -> Said | None:
    store, summary = case.facts.store, case.facts.summary
    if case.facts.lost is not None:
        return _no(case.facts.lost.reason, case.facts.lost.message)
    if store is None:
        if RunCondition.CHECKPOINT_AVAILABLE in case.before:
            return None
        return _unknown("StoreNotRead", "not known before the store is read: checkpoints")
    latest = store.states[-1] if store.states else None
    late = False
    if case.spec is not None and summary is not None and case.state in _READY[:2]:
        saved = latest.step if latest else 0
        same = latest is None or latest.epoch == summary.epoch
        allowed = _LATE_INTERVALS * case.spec.checkpoint.every_steps
        late = same and summary.next_step - saved > allowed
    lost = (
        f"; no new one in {_LATE_INTERVALS} intervals: look for saver.failed in the trainer's log"
    )
    if latest is None:
        start = "no checkpoint is stored: a restart begins at step 0"
        return _no("Late" if late else "NoneYet", start + (lost if late else ""))
    found = "a restart goes on from status.checkpoints.latest"
    return _yes("Late" if late else "Saved", found + (lost if late else ""))


def _complete(case: Case) -> Said:
    if case.state is RunState.COMPLETED:
        return _yes("AllStepsDone", f"the last step is done: {case.message}")
    return _no("StepsLeft", "the last step has not been taken")


def _failed(case: Case) -> Said | None:
    if case.facts.failed is not None and case.state is RunState.FAILED:
        was = case.before.get(RunCondition.FAILED)
        if was is not None and was.status is ConditionStatus.TRUE:
            return None  # its observedGeneration is that of the spec it failed with
        return _yes(*case.facts.failed)
    return _no("NotFailed", "nothing has ended the run before its last step")


def _finished(case: Case) -> Said:
    if case.state in (RunState.COMPLETED, RunState.FAILED):
        return _yes(case.state.value, f"the run has ended: {case.message}")
    return _no("NotEnded", "the run is neither complete nor failed")


def _reconciling(case: Case) -> Said | None:
    stalled = case.facts.failure is not None and case.facts.failure.stalled
    if case.state not in _PASSING or stalled:
        return None
    return _yes(case.state.value, case.message)


def _stalled(case: Case) -> Said | None:
    failure = case.facts.failure
    if failure is None or not failure.stalled:
        return None
    return _yes(failure.reason, failure.message)


#: A row that says nothing keeps the condition as it was; Reconciling and Stalled are then absent.
ROWS: Final[Mapping[RunCondition, Callable[[Case], Said | None]]] = {
    RunCondition.READY: _ready,
    RunCondition.SUSPENDED: _suspended,
    RunCondition.BRANCHING: _branching,
    RunCondition.STABLE: _stable,
    RunCondition.CHECKPOINT_AVAILABLE: _checkpoint,
    RunCondition.COMPLETE: _complete,
    RunCondition.FAILED: _failed,
    RunCondition.FINISHED: _finished,
    RunCondition.RECONCILING: _reconciling,
    RunCondition.STALLED: _stalled,
}
