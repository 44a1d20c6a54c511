"""A Branch's spec and status, projected from what the store holds of it. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkcast.branch import (
    Collapsing,
    Drafting,
    Finished,
    Forking,
    Phase,
    Releasing,
    RolloutSeen,
    control_of,
)
from forkcast.decision import CONTROL, Decision, Draft, Judgement, Outcome
from forkcast.records import StateRef, Trial, TrialStatus
from forkcast_operator.branch_records import BranchRecord
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.seen import JobSeen, Work
from forkcast_wire import keys
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import (
    BranchAcceptance,
    BranchCondition,
    BranchCost,
    BranchSpec,
    BranchStatus,
    BranchTrigger,
    Condition,
    ConditionStatus,
    DecisionStatus,
    DraftStatus,
    RolloutState,
    RolloutStatus,
    RunRef,
    set_condition,
)

_MOST_TEXT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchFacts:
    """What the store holds of a branch."""

    record: BranchRecord
    phase: Phase
    bases: tuple[StateRef, ...]
    draft: Draft | None
    decision: Decision | None
    rollouts: Mapping[str, RolloutSeen]

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return isinstance(self.phase, Finished)

    @property
    def outcome(self) -> Outcome | None:
        """How it ends, as soon as that is known."""
        if isinstance(self.phase, Releasing | Finished):
            return self.phase.outcome
        return self.decision.outcome if self.decision else None


def branch_spec(run: Run, record: BranchRecord, spec: TrainingRunSpec) -> dict[str, Any]:
    """The spec of the Branch object: the branch as it was opened."""
    trigger, rules = record.trigger, record.rules
    return BranchSpec(
        run_ref=RunRef(name=run.name, uid=run.uid),
        trigger=BranchTrigger(
            epoch=trigger.epoch,
            step=trigger.step,
            onset_step=trigger.onset_step,
            rule=trigger.rule,
            z=_text(trigger.z),
            index=_text(trigger.index),
            components={name: _text(value) for name, value in trigger.components.items()},
            thresholds={name: _text(value) for name, value in trigger.thresholds.items()},
        ),
        opened_at=dt.datetime.fromtimestamp(record.opened_at, dt.UTC),
        deadline_seconds=spec.branching.budget.deadline_seconds,
        candidates=spec.branching.candidates,
        top_k=spec.branching.top_k,
        rungs=list(rules.rungs),
        confirm_steps=rules.confirm_steps,
        confirm_finalists=rules.confirm_finalists,
        depths=list(rules.depths),
        apply=rules.apply,
        acceptance=BranchAcceptance(
            preset=rules.acceptance.preset.value,
            max_risk_quantile=_text(rules.acceptance.max_risk),
            max_volatility_ratio=_text(rules.acceptance.max_volatility_ratio),
            unknown_margin=_text(rules.acceptance.unknown_margin),
        ),
    ).model_dump(mode="json", by_alias=True, exclude_none=True)


def _text(value: float) -> Any:
    """A decimal as the models take it; what is not finite has no decimal."""
    return f"{value:.6g}" if value == value and abs(value) < 1e300 else "0"  # noqa: PLR0124


def branch_status(
    facts: BranchFacts,
    jobs: Sequence[JobSeen],
    before: BranchStatus,
    *,
    generation: int,
    now: dt.datetime,
) -> BranchStatus:
    """The status of the Branch object."""
    cost = facts.decision.cost if facts.decision else None
    return BranchStatus(
        observed_generation=generation,
        conditions=_conditions(facts, before.conditions, generation, now),
        draft=_draft(facts.draft),
        rollouts=_rollouts(facts, jobs),
        decision=_decision(facts, before, now),
        cost=BranchCost(
            rollout_steps=cost.rollout_steps,
            rollout_seconds=_text(cost.rollout_seconds),
        )
        if cost
        else BranchCost(),
        completion_time=(before.completion_time or now) if facts.finished else None,
    )


def _conditions(
    facts: BranchFacts, before: Sequence[Condition], generation: int, now: dt.datetime
) -> list[Condition]:
    phase, outcome = facts.phase, facts.outcome
    word = type(phase).__name__
    ended, failed = facts.finished, outcome in (Outcome.FAILED, Outcome.SUPERSEDED)
    reason = outcome.value if outcome is not None and ended else word
    message = phase.reason.value if isinstance(phase, Releasing | Finished) else ""
    collapsed = outcome is not None and outcome.adopts and isinstance(phase, Releasing | Finished)
    collapsed = collapsed and bool(facts.decision and facts.decision.applied)
    drafted = facts.draft is not None
    verified = facts.decision is not None or isinstance(phase, Collapsing)
    said: dict[BranchCondition, tuple[bool | None, str, str]] = {
        BranchCondition.READY: (ended and not failed, reason, message),
        BranchCondition.DRAFTED: (drafted, "Ranked" if drafted else word, ""),
        BranchCondition.VERIFIED: (verified, "Measured" if verified else word, ""),
        BranchCondition.ACCEPTED: (
            None if outcome is None else outcome.adopts,
            outcome.value if outcome else word,
            message,
        ),
        BranchCondition.COLLAPSED: (collapsed, "Adopted" if collapsed else reason, ""),
        BranchCondition.COMPLETE: (ended and not failed, reason, message),
        BranchCondition.FAILED: (ended and failed, reason, message),
        BranchCondition.FINISHED: (ended, reason, message),
    }
    conditions = list(before)
    for kind, (holds, why, text) in said.items():
        status = ConditionStatus.UNKNOWN
        if holds is not None:
            status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
        conditions = set_condition(
            conditions, kind, status, why, text, generation=generation, now=now
        )
    return conditions


def _draft(draft: Draft | None) -> DraftStatus | None:
    if draft is None:
        return None
    return DraftStatus(
        source=draft.source,
        count=len(draft.candidates),
        finalists=list(draft.finalists),
        model_sha256=draft.model,
        proxy=draft.proxy,
        note=draft.note[:_MOST_TEXT],
    )


def _decision(facts: BranchFacts, before: BranchStatus, now: dt.datetime) -> DecisionStatus | None:
    decision = facts.decision
    if decision is None:
        return None
    return DecisionStatus(
        outcome=decision.outcome,
        reason=decision.reason.value,
        winner=decision.winner,
        action=decision.action.describe()[:256] if decision.action else "",
        key=keys.branch_file(facts.record.trigger.id, "decision"),
        sha256=decision.digest,
        time=before.decision.time if before.decision else now,
    )


def _rollouts(facts: BranchFacts, jobs: Sequence[JobSeen]) -> list[RolloutStatus]:
    if facts.draft is None:
        return []
    judged = {one.candidate: one for one in facts.decision.judgements} if facts.decision else {}
    newest = {job.candidate: job for job in sorted(jobs, key=lambda job: job.rung)}
    names = [CONTROL, *facts.draft.finalists]
    return [
        _rollout(facts, name, facts.rollouts.get(name), newest.get(name), judged.get(name))
        for name in names
    ]


def _rollout(
    facts: BranchFacts,
    name: str,
    seen: RolloutSeen | None,
    job: JobSeen | None,
    judged: Judgement | None,
) -> RolloutStatus:
    last = seen.trials[max(seen.trials)] if seen and seen.trials else None
    return RolloutStatus(
        name=name,
        action=_action(facts, name)[:256],
        job_name=job.name if job else None,
        state=_state(seen, last, job),
        rung=last.rung if last else 0,
        validation_loss=_maybe(last.mean_weights_loss if last else None),
        improvement=_maybe(judged.improvement if judged else None),
        volatility_ratio=_maybe(judged.volatility_ratio if judged else None),
        risk=_maybe(judged.risk if judged else None),
        verdict=judged.verdict if judged else None,
    )


def _maybe(value: float | None) -> Any:
    return None if value is None else _text(value)


def _action(facts: BranchFacts, name: str) -> str:
    if name != CONTROL:
        return facts.draft.candidate(name).action.describe() if facts.draft else ""
    if isinstance(facts.phase, Forking | Drafting) or not facts.bases:
        return ""
    return control_of(facts.record.trigger, facts.bases).action.describe()


def _state(seen: RolloutSeen | None, last: Trial | None, job: JobSeen | None) -> RolloutState:
    if last is not None and last.status is TrialStatus.FAILED:
        return RolloutState.FAILED
    if seen is None:
        return RolloutState.PENDING
    if seen.until is None:
        return RolloutState.STOPPED if last is None else RolloutState.MEASURED
    if seen.until in seen.trials:
        return RolloutState.MEASURED
    running = job is not None and job.work is Work.ACTIVE
    return RolloutState.RUNNING if running else RolloutState.PENDING
