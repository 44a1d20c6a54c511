"""Events of runs and branches: what happened, in one word and a sentence. Pure, but for `Recorder`.

An event's name is made of what happened, so that saying it again after a restart is the same event.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from forkcast.admission import Refusal
from forkcast.decision import Outcome, ProxyAnswer
from forkcast.phases import Finished
from forkcast.records import Trigger
from forkcast_operator.intake import Received
from forkcast_operator.kubernetes.cluster import EVENT, Cluster, ClusterError
from forkcast_operator.kubernetes.ledger import Settled
from forkcast_operator.kubernetes.rollout_state import NOT_ADMITTED
from forkcast_wire.branches import BranchRecord, StoredBranch
from forkcast_wire.resources import (
    BranchCondition,
    BranchStatus,
    ConditionStatus,
    RunCondition,
    RunState,
    TrainingRunStatus,
)

_log = structlog.get_logger()
_WARNINGS = frozenset({RunState.FAILED, RunState.RESTARTING, RunState.NO_PROGRESS})
#: Passing states, not worth an event.
_QUIET = frozenset({RunState.PENDING, RunState.STARTING, RunState.DELETING, RunState.SUSPENDING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """reason: one word. token: what sets it apart from an earlier one of the same reason. series: it
    comes again and again; then it is one event that counts.
    """

    reason: str
    note: str
    token: str
    warning: bool = False
    series: bool = False


def _ready_reason(status: TrainingRunStatus) -> str:
    return next((c.reason for c in status.conditions if c.type == RunCondition.READY), "")


def _said_of_rollouts(status: BranchStatus) -> tuple[str, str]:
    """Reason and message of Ready if they tell why rollouts do not run, else empty."""
    held = {one.reason for one in status.rollouts}
    return next(
        (
            (c.reason, c.message)
            for c in status.conditions
            if c.type == BranchCondition.READY and c.reason in held
        ),
        ("", ""),
    )


def _stalled(status: TrainingRunStatus) -> tuple[str, str] | None:
    return next(
        ((c.reason, c.message) for c in status.conditions if c.type == RunCondition.STALLED), None
    )


def run_events(
    before: TrainingRunStatus, after: TrainingRunStatus, state: RunState, message: str
) -> list[Event]:
    """What the step from one status of a run to the next is worth saying."""
    found: list[Event] = []
    trainer = after.trainer.name if after.trainer else ""
    token = f"{trainer}/{after.observed_generation}/{after.lineage.epoch}"
    if _ready_reason(before) != state and state not in _QUIET:
        warning = state in _WARNINGS
        branch = after.branches.active_name or ""
        found.append(
            Event(
                reason=state.value,
                note=message or branch or f"trainer {trainer}",
                token=f"{token}/{branch}/{after.branches.total}",
                warning=warning,
            )
        )
    stalled = _stalled(after)
    if stalled is not None and stalled != _stalled(before):
        found.append(Event(reason=stalled[0], note=stalled[1], token=token, warning=True))
    failure = after.last_failure
    if failure is not None and failure != before.last_failure and stalled is None:
        found.append(
            Event(
                reason=failure.reason,
                note=failure.message,
                token=f"{token}/{failure.attempts}",
                warning=True,
            )
        )
    return found


def _why(trigger: Trigger) -> str:
    return f"{trigger.rule.value} at step {trigger.step}, z {trigger.z:.2f}"


def opened_event(record: BranchRecord) -> Event:
    """That a branch was opened; said of its run."""
    note = f"{record.name}: {_why(record.trigger)}"
    if record.rules.allowance is not None:
        note += f"; {record.rules.allowance.words}"
    return Event(reason="BranchTriggered", note=note, token=record.trigger.id)


def newer_event(fields: Sequence[str]) -> Event:
    """That fields of a newer definition have their defaults; said of the run."""
    note = (
        f"not known to this operator, and at their defaults: {', '.join(fields)}; the definition in "
        "the cluster is newer"
    )
    return Event(reason="NewerDefinition", note=note, token="")


def suppressed_events(settled: Iterable[Settled]) -> list[Event]:
    """Triggers that opened no branch; said of their run."""
    return [
        Event(
            reason="TriggerSuppressed",
            note=f"triggers open no branch: {Refusal(one.word).words}",
            token=f"{one.trigger.epoch}/{one.word}",
            series=True,
        )
        for one in settled
        if one.received is Received.SUPPRESSED
    ]


def branch_events(branch: StoredBranch, before: BranchStatus, after: BranchStatus) -> list[Event]:
    """What happened to a branch since its status was written last."""
    found = []
    name = branch.record.name
    if branch.draft is not None and before.draft is None:
        draft = branch.draft
        note = f"{len(draft.candidates)} candidates, {len(draft.finalists)} finalists"
        found.append(Event(reason="Drafted", note=f"{note}, by {draft.source.value}", token=name))
        if draft.proxy in (ProxyAnswer.UNAVAILABLE, ProxyAnswer.INVALID):
            word = f"Proxy{draft.proxy.value}"
            found.append(Event(reason=word, note=draft.note, token=name, warning=True))
    reason, message = _said_of_rollouts(after)
    if reason and reason != _said_of_rollouts(before)[0]:
        waits = reason == NOT_ADMITTED
        found.append(Event(reason=reason, note=message, token=name, warning=not waits))
    if branch.decision is not None and before.decision is None:
        decision = branch.decision
        who = f"{decision.winner}: " if decision.winner else ""
        what = decision.action.describe() if decision.action else decision.reason
        found.append(
            Event(reason="Decided", note=f"{decision.outcome.value}, {who}{what}", token=name)
        )
    if _holds(after, BranchCondition.COLLAPSED) and not _holds(before, BranchCondition.COLLAPSED):
        epoch = branch.record.trigger.epoch + 1
        found.append(Event(reason="Collapsed", note=f"epoch {epoch} is durable", token=name))
    if isinstance(branch.phase, Finished) and before.completion_time is None:
        failed = branch.phase.outcome in (Outcome.FAILED, Outcome.SUPERSEDED)
        note = f"{branch.phase.outcome.value}: {branch.phase.reason}"
        found.append(Event(reason="Finished", note=note, token=name, warning=failed))
    return found


def _holds(status: BranchStatus, kind: BranchCondition) -> bool:
    return any(c.type == kind and c.status is ConditionStatus.TRUE for c in status.conditions)


class Recorder:
    """Writes events; one that cannot be written is logged, and nothing waits for it."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster, self._instance = cluster, instance
        self._counts: dict[tuple[str, str], int] = {}

    async def record(self, about: Mapping[str, Any], events: Iterable[Event]) -> None:
        """Say what happened to an object; about: the object."""
        for event in events:
            try:
                body = self._body(about, event)
                made = await self._cluster.create(body)
                if made is None and event.series:
                    await self._count(body)
            except ClusterError as error:
                _log.warning("event.not_recorded", reason=event.reason, error=str(error))

    async def _count(self, body: Mapping[str, Any]) -> None:
        """One more of a series. The count is of this process: reading events is not its right."""
        meta = body["metadata"]
        key = (meta["namespace"], meta["name"])
        self._counts[key] = self._counts.get(key, 1) + 1
        again = {"count": self._counts[key], "lastTimestamp": body["lastTimestamp"]}
        await self._cluster.merge(EVENT, *key, again)

    def _body(self, about: Mapping[str, Any], event: Event) -> dict[str, Any]:
        meta = about["metadata"]
        identity = "/".join((meta["uid"], event.reason, event.token, event.note))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": event.reason,
            "message": event.note[:1000],
            "type": "Warning" if event.warning else "Normal",
            "source": {"component": "forkcast-operator"},
            "reportingComponent": "forkcast.dev/operator",
            "reportingInstance": self._instance[:128],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
