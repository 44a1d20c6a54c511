"""What a run does, in one word and a sentence. Pure."""

from __future__ import annotations

import datetime as dt
import math
from typing import Final

from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.run_facts import RunFacts, former_status, stood
from forkcast_operator.kubernetes.seen import Work
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import RunCondition, RunState

#: No step for so long is no progress: this, or so many steps at the recent pace if that is longer.
_SILENT_SECONDS: Final = 300.0
_SILENT_STEPS: Final = 20


def run_state(
    run: Run, spec: TrainingRunSpec | None, facts: RunFacts, now: dt.datetime
) -> tuple[RunState, str]:
    """What the run does, and a sentence about it, which stays the same while it does the same.
    While the store cannot be read, what it said last holds: a run is complete with the steps wanted
    now, or a branch open.
    """
    trainer, store = facts.trainer, facts.store
    alive = trainer is not None and trainer.work.alive
    if run.deleting:
        return RunState.DELETING, "what belongs to it is being deleted"
    if facts.failed is not None:
        return RunState.FAILED, facts.failed[1]
    if store is not None and store.complete is not None:
        return RunState.COMPLETED, _loss(store.complete.validation_loss)
    if store is None and was_complete(run, spec):
        figures = {one.name: one.value for one in former_status(run).metrics}
        return RunState.COMPLETED, _loss(figures.get("validation_loss", math.nan))
    if spec is not None and spec.suspend:
        if alive or facts.pods_left:
            return RunState.SUSPENDING, "its pods save and leave"
        return RunState.SUSPENDED, "spec.suspend is true"
    if facts.failure is not None and facts.failure.stalled and not alive:
        return RunState.PENDING, facts.failure.message
    if facts.restarting_at is not None:
        return RunState.RESTARTING, f"again at {facts.restarting_at:%H:%M:%S} UTC"
    if trainer is None or trainer.work in (Work.SUCCEEDED, Work.FAILED):
        return RunState.PENDING, "the trainer is being created"
    if trainer.work is Work.QUEUED:
        return RunState.QUEUED, "waits for its queue"
    ready = sum(pod.ready for pod in facts.pods)
    if ready < trainer.wanted:
        return RunState.STARTING, _why_not_ready(facts)
    if (quiet := _quiet(run, facts, now)) is not None:
        return quiet
    later = "; edits of the pods act at the next start: suspend and resume" if facts.edited else ""
    if (name := open_branch(run, facts)) is not None:
        return RunState.BRANCHING, f"pods run, steps come, and branch {name} is open{later}"
    return RunState.RUNNING, f"pods run and steps come{later}"


def was_complete(run: Run, spec: TrainingRunSpec | None) -> bool:
    """Whether the last status said that the run had ended, and it is not wanted longer now."""
    if stood(run, RunCondition.COMPLETE) is None:
        return False
    progress = former_status(run).progress
    return spec is None or progress is None or progress.step >= spec.training.total_steps


def _loss(validation: float) -> str:
    return f"validation loss {validation:.4f} nats/token"


def open_branch(run: Run, facts: RunFacts) -> str | None:
    """Name of the branch that is open, None for none. While the store cannot be read, as it was."""
    if facts.store is None:
        was = stood(run, RunCondition.BRANCHING)
        return former_status(run).branches.active_name or "?" if was is not None else None
    return next((name for name, end in facts.store.outcomes.items() if end is None), None)


def _why_not_ready(facts: RunFacts) -> str:
    waiting = next((pod for pod in facts.pods if pod.waiting), None)
    if waiting is not None:
        return f"{waiting.waiting}: {waiting.message}"
    if facts.late_mounts:
        return f"volumes are not mounted: is there a Secret {facts.secret} with the right keys?"
    if any(pod.leaving for pod in facts.pods):
        return "pods are leaving; others follow when they have gone"
    return "pods are starting"


def _quiet(run: Run, facts: RunFacts, now: dt.datetime) -> tuple[RunState, str] | None:
    """What to say of pods that run and report no step; None if steps come, or nobody knows."""
    summary, before = facts.summary, former_status(run)
    if summary is None:
        return None  # no monitor watches it, or none answers: that is told by itself
    heard = before.last_heartbeat_time
    if summary.HasField("seconds_since_report"):
        heard = now - dt.timedelta(seconds=summary.seconds_since_report)
    since = max((pod.ready_at for pod in facts.pods if pod.ready_at is not None), default=None)
    if heard is None or (since is not None and heard < since):
        where = "" if summary.streams else "; they have not reached the monitor"
        return RunState.STARTING, f"pods run and have reported no step yet{where}"
    limit = _SILENT_SECONDS
    if (known := before.progress) is not None and known.estimated_remaining_seconds is not None:
        left = max(1, known.total_steps - known.step)
        limit = max(limit, _SILENT_STEPS * known.estimated_remaining_seconds / left)
    if (now - heard).total_seconds() <= limit:
        return None
    step = f"no step after {summary.next_step} in {max(1, round(limit / 60))} minutes"
    return RunState.NO_PROGRESS, f"pods run and report nothing: {step}; see the trainer's log"
