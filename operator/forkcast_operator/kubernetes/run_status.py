"""A TrainingRun's status, projected from what cluster, store and monitor show. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from forkcast.decision import Outcome
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.seen import PodSeen, TrainerSeen, Work
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.documents import Complete
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import (
    BranchesStatus,
    CheckpointInfo,
    CheckpointsStatus,
    Condition,
    ConditionStatus,
    LastFailure,
    LineageStatus,
    MetricValue,
    RunCondition,
    RunProgress,
    RunState,
    TrainerStatus,
    TrainingRunStatus,
    UncertaintyStatus,
    set_condition,
)

#: What changes all the time is written at most so often, seconds.
VOLATILE_SECONDS: Final = 30.0
_VOLATILE: Final = ("lastHeartbeatTime", "progress", "metrics", "uncertainty", "checkpoints")
_STALE_SECONDS: Final = 60.0
_MOST_TEXT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What the store shows of a run. complete: its end, if it has reached the steps wanted now.
    states: its durable checkpoints, oldest first.
    """

    lineage: LineageEntry | None = None
    complete: Complete | None = None
    states: tuple[StateRef, ...] = ()
    outcomes: Mapping[str, Outcome | None] = field(default_factory=dict)  # by branch, as opened
    suppressed: int = 0
    rollout_steps: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that went wrong. Stalled: it needs a person."""

    reason: str
    message: str
    stalled: bool = False
    retry_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One look at everything. store: None where it could not be read in this pass. late_mounts: a
    pod has waited long for its volumes; secret: the one it needs.
    """

    trainer: TrainerSeen | None = None
    pods: Sequence[PodSeen] = ()
    store: StoreFacts | None = None
    summary: pb.RunSummary | None = None
    failure: Failure | None = None
    failed: tuple[str, str] | None = None
    restarts: int = 0
    restarting_at: dt.datetime | None = None
    late_mounts: bool = False
    secret: str = ""


def run_state(run: Run, spec: TrainingRunSpec | None, facts: RunFacts) -> tuple[RunState, str]:
    """What the run does, and a sentence about it. While the store cannot be read, what it said last
    holds: a run is complete with the steps wanted now, or a branch open.
    """
    trainer, store = facts.trainer, facts.store
    alive = trainer is not None and trainer.work.alive
    if run.deleting:
        return RunState.DELETING, "what belongs to it is being deleted"
    if facts.failed is not None:
        return RunState.FAILED, facts.failed[1]
    if store is not None and store.complete is not None:
        loss = store.complete.validation_loss
        return RunState.COMPLETED, f"validation loss {loss:.4f} nats/token"
    if store is None and (done := _completed(run, spec)) is not None:
        return RunState.COMPLETED, done.message
    if spec is not None and spec.suspend:
        return (RunState.SUSPENDING, "saving") if alive else (RunState.SUSPENDED, "spec.suspend")
    if facts.failure is not None and facts.failure.stalled and not alive:
        return RunState.PENDING, facts.failure.message
    if facts.restarting_at is not None:
        return RunState.RESTARTING, f"again at {facts.restarting_at:%H:%M:%S} UTC"
    if trainer is None or trainer.work in (Work.SUCCEEDED, Work.FAILED):
        return RunState.PENDING, "the trainer is being created"
    if trainer.work is Work.QUEUED:
        return RunState.QUEUED, "waits for its queue"
    if store is None:
        branching = _stood(run, RunCondition.BRANCHING) is not None
    else:
        branching = None in store.outcomes.values()
    if branching:
        return RunState.BRANCHING, "a branch is open"
    ready = sum(pod.ready for pod in facts.pods)
    if ready < trainer.wanted:
        return RunState.STARTING, _why_not_ready(facts)
    return RunState.RUNNING, ""


def _completed(run: Run, spec: TrainingRunSpec | None) -> Condition | None:
    """The condition by which the last status said that the run had ended, if it is not wanted
    longer now.
    """
    done, progress = _stood(run, RunCondition.COMPLETE), former_status(run).progress
    if done is None or spec is None or progress is None:
        return done
    return done if progress.step >= spec.training.total_steps else None


def _why_not_ready(facts: RunFacts) -> str:
    waiting = next((pod for pod in facts.pods if pod.waiting), None)
    if waiting is not None:
        return f"{waiting.waiting}: {waiting.message}"
    if facts.late_mounts:
        return f"volumes are not mounted: is there a Secret {facts.secret} with the right keys?"
    return "pods are starting"


_GOOD: Final = (RunState.RUNNING, RunState.BRANCHING, RunState.SUSPENDED, RunState.COMPLETED)


def former_status(run: Run) -> TrainingRunStatus:
    """The status as it stands; one that somebody has made unreadable counts as none."""
    try:
        return TrainingRunStatus.model_validate(run.status)
    except ValidationError:
        return TrainingRunStatus()


def _stood(run: Run, kind: RunCondition) -> Condition | None:
    """The condition of the last status, where it was True."""
    return next(
        (
            one
            for one in former_status(run).conditions
            if one.type == kind and one.status is ConditionStatus.TRUE
        ),
        None,
    )


def run_status(
    run: Run, spec: TrainingRunSpec | None, facts: RunFacts, now: dt.datetime
) -> TrainingRunStatus:
    """The status to be. What this look could not see keeps its last value."""
    before = former_status(run)
    state, message = run_state(run, spec, facts)
    ended = state in (RunState.COMPLETED, RunState.FAILED)
    store, summary = facts.store, facts.summary
    started = facts.trainer is not None and any(pod.ready for pod in facts.pods)
    heard = before.last_heartbeat_time
    if summary is not None and summary.HasField("seconds_since_report"):
        heard = now - dt.timedelta(seconds=summary.seconds_since_report)
    failures = facts.restarts
    return TrainingRunStatus(
        observed_generation=run.generation,
        conditions=_conditions(run, state, message, facts, before.conditions, now),
        start_time=before.start_time or (now if started else None),
        completion_time=(before.completion_time or now) if ended else None,
        last_heartbeat_time=heard,
        progress=_progress(spec, facts, before, now),
        metrics=_metrics(facts, before),
        uncertainty=_uncertainty(summary) or before.uncertainty,
        checkpoints=_checkpoints(store) if store else before.checkpoints,
        lineage=_lineage(store.lineage) if store else before.lineage,
        branches=_branches(store) if store else before.branches,
        trainer=_trainer(facts, failures, before),
        last_failure=_last_failure(facts, before, now),
    )


def _conditions(
    run: Run,
    state: RunState,
    message: str,
    facts: RunFacts,
    before: Sequence[Condition],
    now: dt.datetime,
) -> list[Condition]:
    store, summary, failure = facts.store, facts.summary, facts.failure
    unstable = summary is not None and summary.HasField("z") and summary.z > _threshold(run)
    stalled = failure is not None and failure.stalled
    reconciling = (
        state in (RunState.PENDING, RunState.STARTING, RunState.SUSPENDING) and not stalled
    )
    word = state.value
    said: dict[RunCondition, tuple[bool | None, str, str]] = {
        RunCondition.READY: (state in _GOOD and failure is None, word, message),
        RunCondition.SUSPENDED: (state is RunState.SUSPENDED, word, ""),
        RunCondition.BRANCHING: (state is RunState.BRANCHING, word, ""),
        RunCondition.STABLE: (
            None if summary is None or not summary.HasField("z") else not unstable,
            "NotReported" if summary is None else "OverThreshold" if unstable else "BelowThreshold",
            "",
        ),
        RunCondition.COMPLETE: (state is RunState.COMPLETED, word, message),
        RunCondition.FAILED: (
            state is RunState.FAILED,
            facts.failed[0] if facts.failed else word,
            facts.failed[1][:_MOST_TEXT] if facts.failed else "",
        ),
        RunCondition.FINISHED: (state in (RunState.COMPLETED, RunState.FAILED), word, message),
    }
    if store is not None or not any(c.type == RunCondition.CHECKPOINT_AVAILABLE for c in before):
        found = bool(store and store.states)
        said[RunCondition.CHECKPOINT_AVAILABLE] = (
            None if store is None else found,
            "Saved" if found else "NoneYet" if store else "StoreNotRead",
            "",
        )
    if reconciling:
        said[RunCondition.RECONCILING] = (True, word, message)
    if failure is not None and failure.stalled:
        said[RunCondition.STALLED] = (True, failure.reason, failure.message)
    conditions = [
        one
        for one in before
        if one.type not in (RunCondition.RECONCILING, RunCondition.STALLED) or one.type in said
    ]
    if failure is not None and state is not RunState.FAILED:
        said[RunCondition.READY] = (False, word if not stalled else failure.reason, failure.message)
    for kind, (holds, why, text) in said.items():
        status = ConditionStatus.UNKNOWN
        if holds is not None:
            status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
        conditions = set_condition(
            conditions,
            kind,
            status,
            why,
            text[:_MOST_TEXT],
            generation=run.generation,
            now=now,
        )
    return conditions


def _threshold(run: Run) -> float:
    given = run.spec.get("uncertainty", {}).get("trigger", {}).get("z", "2.5")
    try:
        return float(given)
    except (TypeError, ValueError):
        return 2.5


def _progress(
    spec: TrainingRunSpec | None, facts: RunFacts, before: TrainingRunStatus, now: dt.datetime
) -> RunProgress | None:
    if spec is None:
        return before.progress
    total = spec.training.total_steps
    store, summary = facts.store, facts.summary
    known = before.progress or RunProgress(step=0, total_steps=total)
    step, tokens, left = known.step, known.tokens, known.estimated_remaining_seconds
    if store is not None and store.complete is not None:
        step, tokens, left = store.complete.step, store.complete.tokens, 0
    elif summary is not None and summary.next_step:
        step, tokens = summary.next_step, summary.tokens
        left = _remaining(before, step, total, now)
    elif store is not None and store.states and summary is None:
        step = max(step, store.states[-1].step)
    return RunProgress(
        step=step,
        total_steps=total,
        tokens=tokens,
        percentage=min(100, 100 * step // total),
        estimated_remaining_seconds=left,
    )


def _remaining(before: TrainingRunStatus, step: int, total: int, now: dt.datetime) -> int | None:
    """At the pace since the last write of the status, seconds."""
    heard, known = before.last_heartbeat_time, before.progress
    if known is None or heard is None or step <= known.step:
        return known.estimated_remaining_seconds if known else None
    passed = (now - heard).total_seconds()
    return int(passed / (step - known.step) * (total - step)) if passed > 0 else None


def _metrics(facts: RunFacts, before: TrainingRunStatus) -> list[MetricValue]:
    found: dict[str, Any] = {one.name: f"{one.value:g}" for one in before.metrics}
    summary, store = facts.summary, facts.store
    if summary is not None:
        if summary.HasField("loss"):
            found["train_loss"] = f"{summary.loss:.6g}"
        if summary.HasField("grad_norm"):
            found["grad_norm"] = f"{summary.grad_norm:.6g}"
    if store is not None and store.complete is not None:
        found["validation_loss"] = f"{store.complete.validation_loss:.6g}"
    return [
        MetricValue(name=name, value=value)
        for name, value in sorted(found.items())
        if value not in ("nan", "inf", "-inf")
    ]


def _uncertainty(summary: pb.RunSummary | None) -> UncertaintyStatus | None:
    if summary is None or not summary.HasField("index"):
        return None
    last = summary.last_trigger_step if summary.HasField("last_trigger_step") else None
    index: Any = f"{summary.index:.6g}"
    z: Any = f"{summary.z:.6g}" if summary.HasField("z") else "0"
    return UncertaintyStatus(index=index, z=z, ready=summary.HasField("z"), last_trigger_step=last)


def _checkpoints(store: StoreFacts) -> CheckpointsStatus:
    if not store.states:
        return CheckpointsStatus()
    latest = store.states[-1]
    return CheckpointsStatus(
        latest=CheckpointInfo(
            step=latest.step,
            epoch=latest.epoch,
            key=latest.key,
            sha256=latest.digest,
            size_bytes=latest.size_bytes,
        ),
        oldest_step=min(ref.step for ref in store.states),
        count=len(store.states),
    )


def _lineage(entry: LineageEntry | None) -> LineageStatus:
    if entry is None:
        return LineageStatus()
    return LineageStatus(
        epoch=entry.epoch, branch=entry.branch, decision_sha256=entry.decision_digest
    )


def _branches(store: StoreFacts) -> BranchesStatus:
    ended = list(store.outcomes.values())
    active = [name for name, outcome in store.outcomes.items() if outcome is None]
    return BranchesStatus(
        total=len(ended),
        running=len(active),
        accepted=ended.count(Outcome.ACCEPTED),
        control_adopted=ended.count(Outcome.CONTROL_ADOPTED),
        no_action=ended.count(Outcome.NO_ACTION) + ended.count(Outcome.DATA_CAUSED),
        failed=ended.count(Outcome.FAILED) + ended.count(Outcome.SUPERSEDED),
        suppressed=store.suppressed,
        active_name=active[-1] if active else None,
        last_name=next(reversed(list(store.outcomes)), None),
        rollout_steps=store.rollout_steps,
    )


def _trainer(facts: RunFacts, failures: int, before: TrainingRunStatus) -> TrainerStatus | None:
    seen = facts.trainer
    if seen is None:
        if before.trainer is None:
            return None
        return before.trainer.model_copy(update={"ready_pods": 0, "restarts": failures})
    attempt = before.trainer.attempt if before.trainer else 0
    if facts.store is not None:
        attempt = max(0, facts.store.attempts - 1)
    return TrainerStatus(
        kind="JobSet" if seen.kind == "JobSet" else "Job",
        name=seen.name,
        attempt=attempt,
        restarts=failures,
        pods=seen.wanted,
        ready_pods=sum(pod.ready for pod in facts.pods),
    )


def _last_failure(
    facts: RunFacts, before: TrainingRunStatus, now: dt.datetime
) -> LastFailure | None:
    failure = facts.failure
    if failure is None:
        return before.last_failure
    last = before.last_failure
    same = last is not None and (last.reason, last.message) == (
        failure.reason,
        failure.message[:_MOST_TEXT],
    )
    if same:
        return last
    return LastFailure(
        reason=failure.reason,
        message=failure.message[:_MOST_TEXT],
        time=now,
        attempts=facts.restarts,
        next_retry_time=failure.retry_at,
    )


def worth_writing(
    before: Mapping[str, Any], after: Mapping[str, Any], seconds_since: float
) -> bool:
    """Whether a status is to be written: at once where something happened, at most every 30 s
    where only figures moved.
    """
    if before == after:
        return False
    kept = {name: value for name, value in before.items() if name not in _VOLATILE}
    now = {name: value for name, value in after.items() if name not in _VOLATILE}
    return kept != now or seconds_since >= VOLATILE_SECONDS
