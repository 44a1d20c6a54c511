"""A Branch's spec and status, projected from what the store holds of it. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from forkcast.conclusion import control_of
from forkcast.decision import CONTROL, Draft, Judgement
from forkcast.phases import Drafting, Forking
from forkcast_operator.kubernetes.branch_conditions import conditions
from forkcast_operator.kubernetes.rollout_state import RolloutStands, rollout_trouble
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.seen import JobSeen
from forkcast_wire import keys
from forkcast_wire.branches import BranchRecord, StoredBranch
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import (
    BranchAcceptance,
    BranchAllowance,
    BranchCost,
    BranchSpec,
    BranchStatus,
    BranchTrigger,
    DecisionStatus,
    DraftStatus,
    RolloutStatus,
    RunRef,
)

_MOST_TEXT = 1024


def branch_spec(run: Run, record: BranchRecord, spec: TrainingRunSpec) -> dict[str, Any]:
    """The spec of the Branch object: the branch as it was opened."""
    trigger, rules, allowance = record.trigger, record.rules, record.rules.allowance
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
            cause=trigger.cause[:_MOST_TEXT],
            severe=trigger.severe,
        ),
        opened_at=dt.datetime.fromtimestamp(record.opened_at, dt.UTC),
        deadline_seconds=spec.branching.budget.deadline_seconds,
        candidates=spec.branching.candidates,
        top_k=spec.branching.top_k if allowance is None else allowance.candidates,
        allowance=BranchAllowance(most=allowance.most, grounds=allowance.grounds)
        if allowance is not None
        else None,
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
    branch: StoredBranch,
    jobs: Sequence[JobSeen],
    stands: Mapping[str, RolloutStands],
    before: BranchStatus,
    *,
    deadline: float | None = None,
    generation: int,
    now: dt.datetime,
) -> BranchStatus:
    """The status of the Branch object. stands: its rollouts, by candidate. deadline: Unix seconds;
    None if it does not count yet, or is not looked at.
    """
    cost = branch.decision.cost if branch.decision else None
    return BranchStatus(
        observed_generation=generation,
        conditions=conditions(
            branch, rollout_trouble(stands), before.conditions, generation=generation, now=now
        ),
        draft=_draft(branch.draft),
        rollouts=_rollouts(branch, jobs, stands),
        decision=_decision(branch, before, now),
        cost=BranchCost(
            rollout_steps=cost.rollout_steps,
            rollout_seconds=_text(cost.rollout_seconds),
        )
        if cost
        else BranchCost(),
        deadline_time=_deadline(deadline, before),
        completion_time=(before.completion_time or now) if branch.finished else None,
    )


def _deadline(deadline: float | None, before: BranchStatus) -> dt.datetime | None:
    if deadline is None:
        return before.deadline_time
    return dt.datetime.fromtimestamp(deadline, dt.UTC)


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


def _decision(
    branch: StoredBranch, before: BranchStatus, now: dt.datetime
) -> DecisionStatus | None:
    decision = branch.decision
    if decision is None:
        return None
    return DecisionStatus(
        outcome=decision.outcome,
        reason=decision.reason.value,
        winner=decision.winner,
        action=decision.action.describe()[:256] if decision.action else "",
        key=keys.branch_file(branch.id, "decision"),
        sha256=decision.digest,
        time=before.decision.time if before.decision else now,
    )


def newest(jobs: Sequence[JobSeen]) -> dict[str, JobSeen]:
    """The Job of the highest rung, by candidate."""
    return {job.candidate: job for job in sorted(jobs, key=lambda job: job.rung)}


def participants(branch: StoredBranch) -> list[str]:
    """The control and the finalists; none before the draft."""
    return [] if branch.draft is None else [CONTROL, *branch.draft.finalists]


def _rollouts(
    branch: StoredBranch, jobs: Sequence[JobSeen], stands: Mapping[str, RolloutStands]
) -> list[RolloutStatus]:
    judged = {one.candidate: one for one in branch.decision.judgements} if branch.decision else {}
    latest = newest(jobs)
    return [
        _rollout(branch, name, stands[name], latest.get(name), judged.get(name))
        for name in participants(branch)
    ]


def _rollout(
    branch: StoredBranch,
    name: str,
    stands: RolloutStands,
    job: JobSeen | None,
    judged: Judgement | None,
) -> RolloutStatus:
    seen = branch.rollouts.get(name)
    last = seen.trials[max(seen.trials)] if seen and seen.trials else None
    return RolloutStatus(
        name=name,
        action=_action(branch, name)[:256],
        job_name=job.name if job else None,
        state=stands.state,
        reason=stands.reason or None,
        message=stands.message[:_MOST_TEXT],
        rung=last.rung if last else 0,
        validation_loss=_maybe(last.mean_weights_loss if last else None),
        improvement=_maybe(judged.improvement if judged else None),
        volatility_ratio=_maybe(judged.volatility_ratio if judged else None),
        risk=_maybe(judged.risk if judged else None),
        verdict=judged.verdict if judged else None,
    )


def _maybe(value: float | None) -> Any:
    return None if value is None else _text(value)


def _action(branch: StoredBranch, name: str) -> str:
    if name != CONTROL:
        return branch.draft.candidate(name).action.describe() if branch.draft else ""
    if isinstance(branch.phase, Forking | Drafting) or not branch.bases:
        return ""
    return control_of(branch.record.trigger, branch.bases).action.describe()
