"""What is to be done with a run's trainer: start it, start it again, end it, or leave it. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final, TypeAlias

from forkcast_operator.kubernetes.seen import TrainerSeen, Work
from forkcast_wire.manifest import Lifecycle

_MOST_BACKOFF_SECONDS: Final = 3600
#: Reasons of a Job whose start is of no use to repeat.
_UNUSABLE: Final = "PodFailurePolicy"
_OVERDUE: Final = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing is to be done; look again after ``seconds``, None for whenever something changes."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StartTrainer:
    """Create the workload of this start. failures: starts after a failure, this one counted."""

    start: int
    failures: int


@dataclass(frozen=True, slots=True)
class EndTrainer:
    """Delete the workload; its pods save and go."""

    name: str


@dataclass(frozen=True, slots=True)
class FailRun:
    """The run has failed, until a person asks for another try."""

    reason: str
    message: str


TrainerAct: TypeAlias = Leave | StartTrainer | EndTrainer | FailRun


def plan_trainer(
    seen: TrainerSeen | None,
    rules: Lifecycle,
    *,
    wanted: bool,
    complete: bool,
    failures: int,
    now: dt.datetime,
    retried: bool = False,
    active_seconds: int = 0,
    stuck: bool = False,
    disrupted: bool = False,
) -> TrainerAct:
    """wanted: neither suspended, nor being deleted, nor failed. failures: so far. retried: the run
    had failed and is to go on; what failed before is not counted any more. active_seconds: of all starts that have ended. stuck: no pod of it
    can start as it was made, and the spec has been edited since. disrupted: a pod of it was evicted,
    preempted or drained away, and those that trained with it have failed for that: no failure is counted.
    """
    if not wanted:
        running = seen is not None and seen.work in (Work.QUEUED, Work.ACTIVE)
        return EndTrainer(seen.name) if seen is not None and running else Leave()
    if not complete and stuck and seen is not None and seen.work is Work.ACTIVE:
        return EndTrainer(seen.name)  # one with the edited pods follows when it has gone
    if complete or (seen is not None and seen.work.alive):
        return Leave()
    limit = rules.active_deadline_seconds
    if limit and active_seconds >= limit:
        said = f"active for {active_seconds} s of lifecycle.activeDeadlineSeconds, {limit}"
        return FailRun(_OVERDUE, said)
    if retried:
        return StartTrainer(failures if seen is None else seen.start + 1, 0)
    if seen is None:
        return StartTrainer(failures, failures)
    if seen.work is Work.SUCCEEDED:  # it was asked to go, by a drained node or by a person
        return StartTrainer(seen.start + 1, failures)
    if seen.reason in (_UNUSABLE, _OVERDUE):
        reason = "Unusable" if seen.reason == _UNUSABLE else _OVERDUE
        return FailRun(reason, seen.message)
    if disrupted:
        wait = rules.restart_backoff_seconds - _since(seen, now)
        return Leave(wait) if wait > 0 else StartTrainer(seen.start + 1, failures)
    if failures >= rules.max_restarts:
        return FailRun("RestartsExceeded", f"{failures} restarts; last: {seen.message}")
    wait = _backoff(rules, failures) - _since(seen, now)
    return Leave(wait) if wait > 0 else StartTrainer(seen.start + 1, failures + 1)


def asks_for_retry(
    failed_generation: int, generation: int, asked: str, seen: TrainerSeen | None
) -> bool:
    """Whether a run that has failed is to go on: its spec has changed since, or the annotation
    `forkcast.dev/retry` has a value that no start has answered yet. failed_generation: of the spec
    that it failed with. asked: the annotation's value.
    """
    if failed_generation != generation:
        return True
    return bool(asked) and (seen is None or seen.retry != asked)


def active_seconds(known: int, counted: str, seen: TrainerSeen | None) -> tuple[int, str]:
    """How long the starts that have ended were active, seconds, and the newest of them. known,
    counted: the same before this look.
    """
    if seen is None or seen.name == counted or seen.started_at is None or seen.ended_at is None:
        return known, counted
    return known + max(0, int((seen.ended_at - seen.started_at).total_seconds())), seen.name


def _backoff(rules: Lifecycle, failures: int) -> float:
    """Seconds before the next start; it doubles with each failure, up to an hour."""
    doubled = rules.restart_backoff_seconds * 2.0 ** min(failures, 20)
    return min(doubled, _MOST_BACKOFF_SECONDS)


def _since(seen: TrainerSeen, now: dt.datetime) -> float:
    return (now - seen.ended_at).total_seconds() if seen.ended_at else 0.0
