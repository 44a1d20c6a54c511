"""What one look at a run shows: workload and pods, store, monitor, and what went wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from forkcast.decision import Outcome
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.seen import PodSeen, TrainerSeen
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.branches import Suppression
from forkcast_wire.documents import Complete
from forkcast_wire.newer import known_part
from forkcast_wire.resources import Condition, ConditionStatus, RunCondition, TrainingRunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What the store shows of a run. complete: its end, if it has reached the steps wanted now.
    states: its durable checkpoints, oldest first. suppressed: triggers that opened no branch;
    last_suppressed: the newest of them, None if there is none or its record is damaged.
    """

    lineage: LineageEntry | None = None
    complete: Complete | None = None
    states: tuple[StateRef, ...] = ()
    outcomes: Mapping[str, Outcome | None] = field(default_factory=dict)  # by branch, as opened
    suppressed: int = 0
    last_suppressed: Suppression | None = None
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
    """One look at everything. store: None if it could not be read in this pass. late_mounts: a
    pod has waited long for its volumes; secret: the one it needs. active_seconds: of the starts
    that have ended, the newest of them counted. pods_left: of the
    trainer and of rollouts, those that are leaving among them. failed: why the run has
    ended without its last step; monitor_trouble: what certificates have to do
    with it that the monitor is not heard; disrupted: a pod of this start was evicted, preempted or drained
    away; retry: it is to go on all the same. edited:
    its pods were made before an edit of the spec. failure: of the run; rollouts: why rollouts of the open branch have no running pod, which does not touch the run's training.
    lost: the run's records are gone from the store.
    """

    trainer: TrainerSeen | None = None
    pods: Sequence[PodSeen] = ()
    pods_left: int = 0
    store: StoreFacts | None = None
    summary: pb.RunSummary | None = None
    monitor_trouble: str = ""
    failure: Failure | None = None
    rollouts: Failure | None = None
    failed: tuple[str, str] | None = None
    retry: bool = False
    edited: bool = False
    disrupted: bool = False
    restarts: int = 0
    active_seconds: int = 0
    counted: str = ""
    restarting_at: dt.datetime | None = None
    late_mounts: bool = False
    secret: str = ""
    lost: Failure | None = None


def former_status(run: Run) -> TrainingRunStatus:
    """The status as it stands, without what a newer operator has added; one that somebody has made
    unreadable counts as none.
    """
    try:
        return known_part(TrainingRunStatus, run.status)[0]
    except ValidationError:
        return TrainingRunStatus()


def stood(run: Run, kind: RunCondition) -> Condition | None:
    """The condition of the last status, where it was True."""
    return next(
        (
            one
            for one in former_status(run).conditions
            if one.type == kind and one.status is ConditionStatus.TRUE
        ),
        None,
    )
