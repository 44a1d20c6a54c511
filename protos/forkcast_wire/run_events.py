"""A run's events: each trigger that told of a departure, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from forkcast.records import Trigger, TriggerRule
from forkcast_wire.run_records import RunRecords

#: The tier of an event that asks for a branch.
BRANCH_TIER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """An event as the records have it.

    onset_step: the first step of the departure, <= step. tier: 2 event, 3 branch, 4 stop.
    component: the one of the index that said most, or the rule if none did. cause: one sentence.
    rule, z: of the trigger. branch: its branch, e.g. "e0-t120"; None if it opened none.
    outcome, reason: of the branch, None and "" while it is open; without a branch, None and why not.
    """

    run_uid: str
    epoch: int
    step: int
    onset_step: int
    tier: int
    component: str
    cause: str
    rule: str
    z: float
    branch: str | None
    outcome: str | None
    reason: str


def events_of(records: RunRecords) -> list[RunEvent]:
    """All of them, by (epoch, step). A calm stretch, after which a cut is paid back, is none."""
    found = [
        _event(one.trigger, branch=one.id, outcome=one.outcome, reason=one.reason)
        for one in records.branches
    ]
    found += [
        _event(one.trigger, branch=None, outcome=None, reason=one.reason.value)
        for one in records.suppressed
    ]
    departures = (one for one in found if one.rule != TriggerRule.CALM)
    return sorted(departures, key=lambda one: (one.epoch, one.step))


def triggers_of(records: RunRecords) -> list[Trigger]:
    """All triggers on record, by (epoch, step)."""
    found = [one.trigger for one in records.branches]
    found += [one.trigger for one in records.suppressed]
    return sorted(found, key=lambda one: (one.epoch, one.step))


def _event(trigger: Trigger, *, branch: str | None, outcome: str | None, reason: str) -> RunEvent:
    parts = trigger.components
    component = max(parts, key=lambda name: parts[name]) if parts else trigger.rule.value
    since = f" since step {trigger.onset_step}" if trigger.onset_step < trigger.step else ""
    return RunEvent(
        run_uid=trigger.run_uid,
        epoch=trigger.epoch,
        step=trigger.step,
        onset_step=trigger.onset_step,
        tier=BRANCH_TIER,
        component=component,
        cause=f"{trigger.rule.value}: z {trigger.z:.1f}, most from {component}{since}",
        rule=trigger.rule.value,
        z=trigger.z,
        branch=branch,
        outcome=outcome,
        reason=reason,
    )
