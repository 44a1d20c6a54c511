"""A run's events: what the monitor recorded with a step, each trigger, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from forkcast.records import Event, Tier, Trigger, TriggerRule
from forkcast_wire.run_records import RunRecords
from forkcast_wire.statistics import components_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """An event as the records have it.

    onset_step: the first step of the departure, <= step; ``step`` in records of earlier versions if no
    trigger tells. tier: 2 event, 3 branch, 4 stop. component: the one of the index that said most, or the rule
    if none did, or "". cause: in words.
    rule, z: of the trigger; rule is None for an event that triggered nothing. branch: its branch, e.g.
    "e0-t120"; None if it opened none. outcome, reason: of the branch, None and "" while it is open;
    without a branch, None and why it has none, "" without a trigger.
    """

    run_uid: str
    epoch: int
    step: int
    onset_step: int
    tier: int
    component: str
    cause: str
    rule: str | None
    z: float
    branch: str | None
    outcome: str | None
    reason: str


def events_of(records: RunRecords, rows: Iterable[Mapping[str, Any]]) -> list[RunEvent]:
    """All of them, by (epoch, step). rows: of the run's history; those of a monitor tell of events.
    A calm stretch, after which a cut is paid back, is none.
    """
    triggered = [
        _of_trigger(one.trigger, branch=one.id, outcome=one.outcome, reason=one.reason)
        for one in records.branches
    ]
    triggered += [
        _of_trigger(one.trigger, branch=None, outcome=None, reason=one.reason.value)
        for one in records.suppressed
    ]
    found = {(one.epoch, one.step): one for one in triggered if one.rule != TriggerRule.CALM}
    for row in rows:
        if row.get("event") is None:
            continue
        place = row["epoch"], row["step"]
        tier = max(row.get("tier") or 0, int(Tier.EVENT))
        if place in found:
            tier = max(tier, found[place].tier)
            onset = row.get("onset_step")
            onset = found[place].onset_step if onset is None else onset
            found[place] = replace(found[place], cause=row["event"], tier=tier, onset_step=onset)
        else:
            found[place] = _of_row(row, tier)
    return [found[place] for place in sorted(found)]


def triggers_of(records: RunRecords) -> list[Trigger]:
    """All triggers on record, by (epoch, step)."""
    found = [one.trigger for one in records.branches]
    found += [one.trigger for one in records.suppressed]
    return sorted(found, key=lambda one: (one.epoch, one.step))


def _of_row(row: Mapping[str, Any], tier: int) -> RunEvent:
    onset = row.get("onset_step")
    return RunEvent(
        run_uid=row["run_uid"],
        epoch=row["epoch"],
        step=row["step"],
        onset_step=row["step"] if onset is None else onset,
        tier=tier,
        component=_foremost(components_of(row)),
        cause=row["event"],
        rule=None,
        z=row["z"] or 0.0,
        branch=None,
        outcome=None,
        reason="",
    )


def _of_trigger(
    trigger: Trigger, *, branch: str | None, outcome: str | None, reason: str
) -> RunEvent:
    event = event_of(trigger)
    return RunEvent(
        run_uid=event.run_uid,
        epoch=event.epoch,
        step=event.step,
        onset_step=event.onset_step,
        tier=int(event.tier),
        component=event.component,
        cause=event.cause,
        rule=trigger.rule.value,
        z=trigger.z,
        branch=branch,
        outcome=outcome,
        reason=reason,
    )


def event_of(trigger: Trigger) -> Event:
    """A trigger as the event that it tells of: by its record alone, which in earlier versions has no
    cause.
    """
    component = _foremost(trigger.components)
    most = f", most from {component}" if component else ""
    since = f" since step {trigger.onset_step}" if trigger.onset_step < trigger.step else ""
    return Event(
        run_uid=trigger.run_uid,
        epoch=trigger.epoch,
        step=trigger.step,
        onset_step=trigger.onset_step,
        tier=Tier.BRANCH,
        component=component or trigger.rule.value,
        cause=trigger.cause or f"{trigger.rule.value}: z {trigger.z:.1f}{most}{since}",
    )


def _foremost(parts: Mapping[str, float]) -> str:
    """The component that says most; "" if none says anything."""
    name = max(parts, key=lambda one: parts[one], default="")
    return name if name and parts[name] > 0 else ""
