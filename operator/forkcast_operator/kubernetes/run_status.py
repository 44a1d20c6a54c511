"""A TrainingRun's status, projected from what cluster, store and monitor show. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final

from forkcast.decision import Outcome
from forkcast.lineage import LineageEntry
from forkcast_operator.kubernetes.rollout_state import NOT_ADMITTED
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.run_conditions import Case, conditions
from forkcast_operator.kubernetes.run_facts import RunFacts, StoreFacts, former_status
from forkcast_operator.kubernetes.run_state import run_state
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.fields import DECIMAL_PATTERN
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import (
    BranchesStatus,
    CheckpointInfo,
    CheckpointsStatus,
    LastFailure,
    LineageStatus,
    MetricValue,
    RunProgress,
    RunState,
    TrainerStatus,
    TrainingRunStatus,
    UncertaintyStatus,
)

#: What changes all the time is written at most so often, seconds.
VOLATILE_SECONDS: Final = 30.0
_VOLATILE: Final = ("lastHeartbeatTime", "progress", "metrics", "uncertainty", "checkpoints")
_MOST_TEXT: Final = 1000


def run_status(
    run: Run, spec: TrainingRunSpec | None, facts: RunFacts, now: dt.datetime
) -> TrainingRunStatus:
    """The status to be. What this look could not see keeps its last value."""
    before = former_status(run)
    state, message = run_state(run, spec, facts, now)
    ended = state in (RunState.COMPLETED, RunState.FAILED)
    store, summary = facts.store, facts.summary
    started = facts.trainer is not None and any(pod.ready for pod in facts.pods)
    heard = before.last_heartbeat_time
    if summary is not None and summary.HasField("seconds_since_report"):
        heard = now - dt.timedelta(seconds=summary.seconds_since_report)
    failures = facts.restarts
    case = Case(
        run=run,
        spec=spec,
        facts=facts,
        state=state,
        message=message,
        before={one.type: one for one in before.conditions},
    )
    return TrainingRunStatus(
        observed_generation=run.generation,
        conditions=conditions(case, before.conditions, now),
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
    elif store and store.lineage and summary and summary.epoch < store.lineage.epoch:
        step = store.lineage.state.step  # the monitor has not heard of the new epoch yet
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
        if _spelt(value)
    ]


def _uncertainty(summary: pb.RunSummary | None) -> UncertaintyStatus | None:
    if summary is None or not summary.HasField("index"):
        return None
    last = summary.last_trigger_step if summary.HasField("last_trigger_step") else None
    index: Any = f"{summary.index:.6g}"
    z: Any = f"{summary.z:.6g}" if summary.HasField("z") else "0"
    if not (_spelt(index) and _spelt(z)):
        return None
    ready = summary.HasField("over_threshold")
    told = summary.HasField("last_event_step")
    return UncertaintyStatus(
        index=index,
        z=z,
        ready=ready,
        last_trigger_step=last,
        events=summary.events,
        last_event_step=summary.last_event_step if told else None,
        last_event=summary.last_event,
    )


def _spelt(figure: str) -> bool:
    """Whether the status can hold the figure: no NaN, nothing infinite, nothing beyond its powers."""
    return re.fullmatch(DECIMAL_PATTERN, figure) is not None


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
        last_suppressed=store.last_suppressed.words if store.last_suppressed else None,
        active_name=active[-1] if active else None,
        last_name=next(reversed(list(store.outcomes)), None),
        rollout_steps=store.rollout_steps,
    )


def _trainer(facts: RunFacts, failures: int, before: TrainingRunStatus) -> TrainerStatus | None:
    seen = facts.trainer
    if seen is None:
        if before.trainer is None:
            return None
        kept = {"active_seconds": facts.active_seconds, "counted": facts.counted}
        return before.trainer.model_copy(update={"ready_pods": 0, "restarts": failures, **kept})
    attempt = before.trainer.attempt if before.trainer else 0
    if facts.store is not None:
        attempt = max(0, facts.store.attempts - 1)
    return TrainerStatus(
        kind="JobSet" if seen.kind == "JobSet" else "Job",
        name=seen.name,
        attempt=attempt,
        restarts=failures,
        active_seconds=facts.active_seconds,
        counted=facts.counted,
        disrupted=seen.name if facts.disrupted else "",
        pods=seen.wanted,
        ready_pods=sum(pod.ready for pod in facts.pods),
    )


def _last_failure(
    facts: RunFacts, before: TrainingRunStatus, now: dt.datetime
) -> LastFailure | None:
    held = facts.rollouts
    failure = facts.failure or (held if held and held.reason != NOT_ADMITTED else None)
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
