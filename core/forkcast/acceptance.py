"""Trials to a verdict: who goes on at a rung, who is accepted at the end, and why.

A candidate is always compared with the control at the same lineage step on the same data. The
default preset compares validation losses taken with the mean of recent weights, beyond a margin
measured on healthy forks: raw loss after a few dozen steps ranks learning rates backwards on a
healthy run, because a lower rate merely anneals (docs/experiments.md). `Preset.LITERAL` is the
bare rule "risk and (calmer or better at +50)", kept for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from forkcast.actions import Action
from forkcast.decision import (
    CONTROL,
    Circumstances,
    Draft,
    Judgement,
    Outcome,
    Reason,
    Verdict,
)
from forkcast.records import Trial, TrialStatus, Trigger

#: Margins in nats/token by action class, then by rung (steps after the trigger): the 95 % quantile
#: of what such actions seemed to gain on 96 healthy forks of 50 small runs, printed by
#: scripts/measure_margins.py (docs/experiments.md, "Margins"). The table is read at the largest rung
#: that is not beyond the trial's. Clipping had too few runs for a margin of its own.
DEFAULT_MARGINS: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "lower-rate": MappingProxyType({50: 0.042, 200: 0.042}),
        "momentum": MappingProxyType({50: 0.044, 200: 0.099}),
        "raise-rate": MappingProxyType({50: 0.058, 200: 0.058}),
        "weight-decay": MappingProxyType({50: 0.02, 200: 0.02}),
    }
)
UNKNOWN_MARGIN = 0.02
#: Steps at the end of a rollout over which its volatility is taken.
VOLATILITY_STEPS = 25
#: Losses that must be finite in a rollout before its volatility means anything.
_LEAST_LOSSES = 5


class Preset(StrEnum):
    """Which rule accepts."""

    DEFAULT = "Default"
    LITERAL = "Literal"


#: What stands for the risk where no calibrated quantile does.
_EVENT_RULE = {
    Preset.DEFAULT: "no more unstable steps than the control",
    Preset.LITERAL: "no unstable step in the rollout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRules:
    """max_risk: the calibrated risk quantile must be below it, in [0, 1].
    max_volatility_ratio: candidate's over control's volatility, at most. margins: see
    DEFAULT_MARGINS. unknown_margin: nats/token where the table is silent.
    ema_decay: of the control's baseline, in [0, 1).
    """

    preset: Preset = Preset.DEFAULT
    max_risk: float = 0.2
    max_volatility_ratio: float = 1.05
    margins: Mapping[str, Mapping[int, float]] = field(default_factory=lambda: DEFAULT_MARGINS)
    unknown_margin: float = UNKNOWN_MARGIN
    ema_decay: float = 0.98

    def margin(self, kind: str, rung: int) -> float:
        """What an improvement of this action class must exceed at this rung, nats/token."""
        table = self.margins.get(kind, {})
        known = [horizon for horizon in table if horizon <= rung]
        return max(table[max(known)], 0.0) if known else self.unknown_margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a verdict may rest on. ``trials[name][rung]``; the control's are those of CONTROL.

    rung: the last rung every entrant was meant to reach. confirm_rung: 0 if there is none.
    """

    trigger: Trigger
    draft: Draft
    trials: Mapping[str, Mapping[int, Trial]]
    circumstances: Circumstances
    rung: int
    confirm_rung: int

    @property
    def cut_short(self) -> bool:
        """Whether verification did not finish."""
        return self.circumstances.cut_short


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The outcome, who won (a candidate's name, CONTROL, or None) and each finalist's judgement.

    cause_step: the step at which every rollout spiked, if that is the reason.
    """

    outcome: Outcome
    reason: Reason
    winner: str | None
    judgements: tuple[Judgement, ...]
    cause_step: int | None = None


def compared_loss(trial: Trial, preset: Preset) -> float | None:
    """The loss a preset compares, nats/token; None if it is missing or not finite."""
    value = trial.validation_loss if preset is Preset.LITERAL else trial.mean_weights_loss
    return value if value is not None and math.isfinite(value) else None


def improvement(control: Trial, candidate: Trial, preset: Preset) -> float | None:
    """The control's loss minus the candidate's, nats/token, at the same lineage step.

    Raises ValueError if the two were not measured at the same step.
    """
    if control.step != candidate.step:
        raise ValueError(f"not one lineage step: {control.step=} {candidate.step=}")
    theirs, ours = compared_loss(candidate, preset), compared_loss(control, preset)
    if candidate.status is not TrialStatus.OK or control.status is not TrialStatus.OK:
        return None
    return None if theirs is None or ours is None else ours - theirs


def volatility(trial: Trial, baseline: Trial, decay: float) -> float | None:
    """Sd of (loss - the baseline rollout's EMA) over the trial's last 25 steps, nats/token.

    The EMA of the baseline excludes the current value, so both are read against what was to be
    expected before the step. None if fewer than 5 finite values remain.
    """
    expected = _ema_before(baseline, decay)
    first = trial.step - VOLATILITY_STEPS + 1
    rest = [
        loss - expected[step]
        for step, loss in enumerate(trial.losses, start=trial.losses_from)
        if step >= first and step in expected and math.isfinite(loss)
    ]
    if len(rest) < _LEAST_LOSSES:
        return None
    mean = math.fsum(rest) / len(rest)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in rest) / (len(rest) - 1))


def _ema_before(trial: Trial, decay: float) -> dict[int, float]:
    """The bias-corrected EMA of a rollout's losses before each step."""
    expected: dict[int, float] = {}
    total = weight = 0.0
    for step, loss in enumerate(trial.losses, start=trial.losses_from):
        if weight > 0:
            expected[step] = total / weight
        if math.isfinite(loss):
            total = decay * total + (1 - decay) * loss
            weight = decay * weight + (1 - decay)
    return expected


# ------------------------------------------------------------------------------------ at the rungs


def survivors(trials: Mapping[str, Trial], rung: int, rules: AcceptanceRules) -> set[str]:
    """Who runs on after an early rung: the control, and every candidate that neither failed nor
    diverged nor is worse than the control by more than two margins. Early rungs never pick a winner.
    """
    control = trials.get(CONTROL)
    going_on = {CONTROL} if control is not None else set()
    for name, trial in trials.items():
        if name == CONTROL or trial.status is not TrialStatus.OK:
            continue
        if control is None or control.status is not TrialStatus.OK:
            going_on.add(name)
            continue
        gain = improvement(control, trial, rules.preset)
        if gain is not None and gain >= -2 * rules.margin("", rung):
            going_on.add(name)
    return going_on


def to_confirm(
    trials: Mapping[str, Trial],
    actions: Mapping[str, Action],
    rung: int,
    count: int,
    rules: AcceptanceRules,
) -> set[str]:
    """Who runs on to the confirm rung beside the control: the ``count`` best survivors by
    improvement. Nobody where the preset is literal or only clip-only changes are left, which need
    no confirmation.
    """
    if rules.preset is Preset.LITERAL:
        return set()
    alive = survivors(trials, rung, rules) - {CONTROL}
    control = trials.get(CONTROL)
    if not any(not actions[name].changes_only_clipping for name in alive):
        return set()

    def gain(name: str) -> float:
        value = improvement(control, trials[name], rules.preset) if control is not None else None
        loss = compared_loss(trials[name], rules.preset)
        return value if value is not None else -(loss if loss is not None else math.inf)

    best = sorted(alive, key=lambda name: (-gain(name), name))[:count]
    return {CONTROL, *best}


# -------------------------------------------------------------------------------------- at the end


def conclude(evidence: Evidence, rules: AcceptanceRules) -> Conclusion:
    """The outcome of a branch. Accepts at most one candidate; on any doubt, none."""
    judgements = tuple(_judge(name, evidence, rules) for name in evidence.draft.finalists)
    passed = [judged for judged in judgements if judged.verdict is Verdict.PASSED]
    if passed:
        best = max(passed, key=lambda judged: (judged.improvement or 0.0, judged.candidate))
        return Conclusion(
            outcome=Outcome.ACCEPTED,
            reason=Reason.IMPROVED,
            winner=best.candidate,
            judgements=tuple(
                replace(judged, verdict=Verdict.ACCEPTED) if judged is best else judged
                for judged in judgements
            ),
        )
    if _control_escaped(evidence, rules):
        return Conclusion(
            outcome=Outcome.CONTROL_ADOPTED,
            reason=Reason.TRANSIENT_CAUSE,
            winner=CONTROL,
            judgements=judgements,
        )
    shared = _shared_spike(evidence)
    if shared is not None:
        return Conclusion(
            outcome=Outcome.DATA_CAUSED,
            reason=Reason.EVERY_ROLLOUT_SPIKED,
            cause_step=shared,
            winner=None,
            judgements=judgements,
        )
    reason = Reason.NO_CANDIDATE_PASSED
    if evidence.cut_short:
        finished = evidence.circumstances.run_finished
        reason = Reason.RUN_FINISHED if finished else Reason.DEADLINE_EXCEEDED
    return Conclusion(outcome=Outcome.NO_ACTION, reason=reason, winner=None, judgements=judgements)


def _last(trials: Mapping[int, Trial]) -> Trial | None:
    return trials[max(trials)] if trials else None


def _judge(name: str, evidence: Evidence, rules: AcceptanceRules) -> Judgement:
    """One finalist against the control at the rung its class is judged at."""
    candidate = evidence.draft.candidate(name)
    mine = evidence.trials.get(name, {})
    final = _last(mine)
    forecast = candidate.forecast
    risk = None if forecast is None or forecast.abstained is not None else forecast.risk
    rule = "calibrated quantile" if risk is not None else _EVENT_RULE[rules.preset]

    def verdict(kind: Verdict, reason: str, **figures: float | None) -> Judgement:
        return Judgement(
            candidate=name,
            rung=final.rung if final is not None else None,
            verdict=kind,
            improvement=figures.get("improvement"),
            margin=figures.get("margin"),
            volatility_ratio=figures.get("ratio"),
            risk=risk,
            risk_rule=rule,
            reason=reason,
        )

    if final is None:
        return verdict(Verdict.UNFINISHED, "no trial was published")
    if final.status is TrialStatus.FAILED:
        return verdict(Verdict.FAILED, final.failure or "the rollout failed")
    if final.status is TrialStatus.DIVERGED:
        return verdict(Verdict.DIVERGED, f"diverged by step {final.step}")
    if final.state is None and final.rung >= evidence.rung:  # nothing is there to adopt
        return verdict(Verdict.FAILED, "its end state was not published")
    control = evidence.trials.get(CONTROL, {}).get(final.rung)
    if control is None or control.status is TrialStatus.FAILED:
        return verdict(Verdict.UNFINISHED, "the control has no trial at this rung")
    if control.status is TrialStatus.DIVERGED:
        return _against_diverged(verdict, final, control, risk, candidate.action, evidence, rules)
    figures = {
        "improvement": improvement(control, final, rules.preset),
        "margin": rules.margin(candidate.action.kind, final.rung),
        "ratio": _ratio(final, control, rules.ema_decay),
    }
    if final.rung < evidence.rung:
        kind = Verdict.UNFINISHED if evidence.cut_short else Verdict.DROPPED_AT_RUNG
        return verdict(kind, f"ended at +{final.rung}", **figures)
    if rules.preset is Preset.LITERAL:
        return _literal(verdict, figures, final, control, risk, rules)
    if (needed := _confirmation_missing(final, candidate.action, evidence)) is not None:
        kind = Verdict.UNFINISHED if evidence.cut_short else Verdict.NOT_CONFIRMED
        return verdict(kind, needed, **figures)
    return _default(verdict, figures, final, control, risk, rules)


def _confirmation_missing(final: Trial, action: Action, evidence: Evidence) -> str | None:
    if not evidence.confirm_rung or action.changes_only_clipping:
        return None
    if final.rung >= evidence.confirm_rung:
        return None
    return f"not confirmed at +{evidence.confirm_rung}"


def _risk_refusal(
    final: Trial, control: Trial, risk: float | None, rules: AcceptanceRules
) -> str | None:
    """Why the risk gate refuses; None if it lets pass. Without a calibrated quantile the
    rollout itself must show, since the trigger, no more flagged steps than the control: on small
    batches both have some by chance (docs/decisions/020). The literal preset allows none.
    """
    if risk is not None:
        return None if risk < rules.max_risk else f"risk {risk:.2f} >= {rules.max_risk:.2f}"
    ours, theirs = (
        sum(step >= final.step - final.rung for step in one.spike_steps) for one in (final, control)
    )
    if rules.preset is Preset.LITERAL:
        return f"unstable steps: {ours}" if ours else None
    return f"unstable steps: {ours}, the control's {theirs}" if ours > theirs else None


def _ratio(final: Trial, control: Trial, decay: float) -> float | None:
    theirs = volatility(final, control, decay)
    ours = volatility(control, control, decay)
    if theirs is None or ours is None:
        return None
    if ours == 0.0:  # no finite ratio, and a record holds no infinities
        return 1.0 if theirs == 0.0 else None
    return theirs / ours


_Verdict = Callable[..., Judgement]


def _default(
    verdict: _Verdict,
    figures: Mapping[str, float | None],
    final: Trial,
    control: Trial,
    risk: float | None,
    rules: AcceptanceRules,
) -> Judgement:
    gain, margin, ratio = figures["improvement"], figures["margin"], figures["ratio"]
    if (refusal := _risk_refusal(final, control, risk, rules)) is not None:
        return verdict(Verdict.RISK, refusal, **figures)
    if gain is None or margin is None or not gain > margin:
        return verdict(Verdict.NO_BETTER, "not better than the control by the margin", **figures)
    if ratio is None or ratio > rules.max_volatility_ratio:
        return verdict(Verdict.VOLATILE, "more volatile than the control", **figures)
    return verdict(Verdict.PASSED, "better by more than the margin, no more volatile", **figures)


def _literal(
    verdict: _Verdict,
    figures: Mapping[str, float | None],
    final: Trial,
    control: Trial,
    risk: float | None,
    rules: AcceptanceRules,
) -> Judgement:
    gain, ratio = figures["improvement"], figures["ratio"]
    if (refusal := _risk_refusal(final, control, risk, rules)) is not None:
        return verdict(Verdict.RISK, refusal, **figures)
    if ratio is not None and ratio < 1.0:
        return verdict(Verdict.PASSED, "calmer than the control", **figures)
    if gain is not None and gain > 0.0:
        return verdict(Verdict.PASSED, "better than the control", **figures)
    return verdict(Verdict.NO_BETTER, "neither calmer nor better than the control", **figures)


def _against_diverged(
    verdict: _Verdict,
    final: Trial,
    control: Trial,
    risk: float | None,
    action: Action,
    evidence: Evidence,
    rules: AcceptanceRules,
) -> Judgement:
    """If the control itself diverged, a candidate that is confirmed, finite and no less stable passes;
    its improvement is how far it is below the last finite loss of the control.
    """
    if final.rung < evidence.rung:
        kind = Verdict.UNFINISHED if evidence.cut_short else Verdict.DROPPED_AT_RUNG
        return verdict(kind, f"ended at +{final.rung}")
    needed = _confirmation_missing(final, action, evidence)
    if needed is not None and rules.preset is not Preset.LITERAL:
        kind = Verdict.UNFINISHED if evidence.cut_short else Verdict.NOT_CONFIRMED
        return verdict(kind, needed)
    if (refusal := _risk_refusal(final, control, risk, rules)) is not None:
        return verdict(Verdict.RISK, refusal)
    ours = compared_loss(final, rules.preset)
    if ours is None:
        return verdict(Verdict.NO_BETTER, "no finite validation loss")
    finite = [loss for loss in control.losses if math.isfinite(loss)]
    gain = (finite[-1] - ours) if finite else None
    if gain is not None and gain <= rules.margin(action.kind, final.rung):
        return verdict(
            Verdict.NO_BETTER, "the control diverged; not below where it stood", improvement=gain
        )
    return verdict(Verdict.PASSED, "the control diverged, this did not", improvement=gain)


def _control_escaped(evidence: Evidence, rules: AcceptanceRules) -> bool:
    """Whether a plain replay, on the same data at the same step, escaped what hit the main run.

    Only then was the cause transient (a bit flip, a communication fault, a lucky kernel order):
    main is still over the threshold, its loss at the trigger stands more than three volatilities
    above the control's, and the control saw no instability event.
    """
    control = _last(evidence.trials.get(CONTROL, {}))
    seen, step = evidence.circumstances, evidence.trigger.step
    if not seen.main_over_threshold or control is None or evidence.cut_short:
        return False
    if control.status is not TrialStatus.OK or control.spike_steps or control.state is None:
        return False
    spread = volatility(control, control, rules.ema_decay)
    offset = step - control.losses_from
    if spread is None or not 0 <= offset < len(control.losses):
        return False
    if seen.main_diverged:
        return True
    return seen.main_loss is not None and seen.main_loss - control.losses[offset] > 3 * spread


def _shared_spike(evidence: Evidence) -> int | None:
    """The first lineage step after the trigger at which every rollout that got there spiked: the
    same batch, whatever was changed. None unless at least two rollouts, the control among them,
    agree.
    """
    finals = {name: last for name, by in evidence.trials.items() if (last := _last(by))}
    if CONTROL not in finals or len(finals) < 2:
        return None
    spikes = [set(trial.spike_steps) for trial in finals.values()]
    shared = set.intersection(*spikes)
    return min(shared) if shared else None
