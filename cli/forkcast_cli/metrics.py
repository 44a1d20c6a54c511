"""The figures of a run, computed from its records. Pure: values in, values out.

Definitions. An *event* is one or more steps flagged by the SpikeScore rule (OLMo-core,
stability_monitor), merged where less than 50 steps apart. It is *recovered* at the first step whose
20-step median loss, taken since its first step, is at most the pre-event 100-step median plus one sd; the search is censored
after 2,000 steps. *Wasted* steps are those that a rewind discarded, those between an event's first
step and its recovery, and, reported apart, the rollout steps that no epoch adopted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from forkcast.adoption import adopted_trial, losses_by_step
from forkcast.decision import CONTROL, Decision, Outcome, Verdict
from forkcast.lineage import LineageEntry
from forkcast.lineage import limits as lineage_limits
from forkcast.records import Trigger
from forkcast.relapse import WATCHED_STEPS, aftermaths
from forkcast.spikes import SpikeScore, merge

_PER = 100_000
_BEFORE, _AFTER, _CENSORED = 100, 20, 2_000
_LEAST_BEFORE = 10


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the main run: loss in nats/token, gradient norm before clipping; NaN where the
    record holds none.
    """

    epoch: int
    step: int
    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the metrics are computed from.

    points: all steps the main run took, by (epoch, step), the abandoned ones too.
    triggers: those that fired, suppressed ones included, but not the calm ones that had nothing to
        pay back. opened: branches opened.
    parameters, tokens_per_step: for FLOPs; None if unknown.
    """

    points: Sequence[Point]
    lineage: Sequence[LineageEntry]
    decisions: Sequence[Decision]
    triggers: Sequence[Trigger]
    opened: int
    validation_loss: float | None
    parameters: int | None
    tokens_per_step: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """An instability event. recovered: the step, None if it was not within 2,000 steps."""

    epoch: int
    first: int
    last: int
    recovered: int | None

    @property
    def steps_to_recover(self) -> int | None:
        """Steps from the first flagged one."""
        return None if self.recovered is None else self.recovered - self.first


@dataclass(frozen=True, slots=True)
class RungPass:
    """How many rollouts (controls not counted) were measured at a rung, and how many went on or,
    at their last rung, met every condition.
    """

    rung: int
    measured: int
    passed: int


@dataclass(frozen=True, slots=True)
class Relapses:
    """Of the collapses watched for ``steps`` (or less, where one relapsed), how many relapsed."""

    steps: int
    watched: int
    relapsed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The figures of a report. None stands for "cannot be said from these records"."""

    steps: int
    validation_loss: float | None
    validation_perplexity: float | None
    events: tuple[Event, ...]
    events_per_100k: float | None
    events_low: float | None
    events_high: float | None
    median_steps_to_recover: float | None
    not_recovered: int
    triggers: int
    branches: int
    branches_per_100k: float | None
    decided: int
    accepted: int
    accept_rate: float | None
    relapses: tuple[Relapses, ...]
    discarded_steps: int
    recovering_steps: int
    verification_steps: int
    verification_seconds: float
    verification_share: float | None
    adopted_steps: int
    wasted_flops: float | None
    wasted_flops_with_verification: float | None
    proxy_gap: float | None
    proxy_rank_correlation: float | None
    proxy_compared: int
    rungs: tuple[RungPass, ...]


def compute(facts: Facts) -> Metrics:
    """All figures of a run."""
    events = find_events(facts)
    steps = len(facts.points) + _adopted(facts)
    low, high = poisson_interval(len(events))
    recovering = sum(_within(event) for event in events)
    discarded = _discarded(facts)
    verification = sum(one.cost.rollout_steps for one in facts.decisions)
    adopted = _adopted(facts)
    known = [s for event in events if (s := event.steps_to_recover) is not None]
    accepted = sum(one.outcome is Outcome.ACCEPTED for one in facts.decisions)
    gaps, ranks = proxy_gaps(facts.decisions)
    loss = facts.validation_loss
    return Metrics(
        steps=steps,
        validation_loss=loss,
        validation_perplexity=math.exp(loss) if loss is not None and loss < 700 else None,
        events=events,
        events_per_100k=_rate(len(events), steps),
        events_low=_rate(low, steps),
        events_high=_rate(high, steps),
        median_steps_to_recover=median(known) if known else None,
        not_recovered=len(events) - len(known),
        triggers=len(facts.triggers),
        branches=facts.opened,
        branches_per_100k=_rate(facts.opened, steps),
        decided=len(facts.decisions),
        accepted=accepted,
        accept_rate=accepted / len(facts.decisions) if facts.decisions else None,
        relapses=relapses(facts),
        discarded_steps=discarded,
        recovering_steps=recovering,
        verification_steps=verification,
        verification_seconds=sum(one.cost.rollout_seconds for one in facts.decisions),
        verification_share=verification / steps if steps else None,
        adopted_steps=adopted,
        wasted_flops=_flops(facts, discarded + recovering),
        wasted_flops_with_verification=_flops(
            facts, discarded + recovering + verification - adopted
        ),
        proxy_gap=fmean(gaps) if gaps else None,
        proxy_rank_correlation=fmean(ranks) if ranks else None,
        proxy_compared=len(gaps),
        rungs=rung_passes(facts.decisions),
    )


def _rate(count: float, steps: int) -> float | None:
    return count * _PER / steps if steps else None


def _flops(facts: Facts, steps: int) -> float | None:
    """6 N tokens (Kaplan et al. 2020, section 2.1)."""
    if facts.parameters is None or facts.tokens_per_step is None:
        return None
    return 6.0 * facts.parameters * facts.tokens_per_step * steps


# ------------------------------------------------------------------------------------------ events


def find_events(facts: Facts) -> tuple[Event, ...]:
    """The events of all epochs in order. After a rewind the rule's window is what it was at the
    base; of an adopted rollout the record holds losses and flags, no gradient norms.
    """
    found: list[Event] = []
    for epoch in sorted({point.epoch for point in facts.points}):
        before = lineage_points(facts.points, facts.lineage, epoch)
        entry = _entry(facts.lineage, epoch)
        rollout = adopted_trial(facts.decisions, entry)
        score = SpikeScore()
        for point in before:
            score.fold(point.step, point.loss, point.grad_norm)
        score.flagged.clear()
        mine = [point for point in facts.points if point.epoch == epoch]
        for point in mine:
            score.fold(point.step, point.loss, point.grad_norm)
        taken = [] if rollout is None else list(losses_by_step(rollout))
        first_step = entry.base_step if entry is not None else 0
        flagged = list(score.flagged)
        if rollout is not None:
            flagged += [step for step in rollout.spike_steps if step >= first_step]
        losses = {point.step: point.loss for point in before}
        losses |= dict(taken) | {point.step: point.loss for point in mine}
        for first, last in merge(flagged):
            found.append(Event(epoch, first, last, _recovery(losses, first)))
    return tuple(found)


def _entry(lineage: Sequence[LineageEntry], epoch: int) -> LineageEntry | None:
    return next((one for one in lineage if one.epoch == epoch), None)


def lineage_points(
    points: Sequence[Point], lineage: Sequence[LineageEntry], epoch: int
) -> list[Point]:
    """The main run's steps that the lineage of ``epoch`` rests on, before its own."""
    limits = lineage_limits(lineage, epoch)
    return [p for p in points if p.epoch < epoch and p.step < limits.get(p.epoch, 0)]


def _recovery(losses: Mapping[int, float], first: int) -> int | None:
    """The step at which an event is over, None if the record does not show one."""
    calm = [loss for step, loss in losses.items() if first - _BEFORE <= step < first]
    calm = [loss for loss in calm if math.isfinite(loss)]
    if len(calm) < _LEAST_BEFORE:
        return None
    limit = median(calm) + pstdev(calm)
    for step in range(first + _AFTER - 1, first + _CENSORED + 1):
        window = [losses[s] for s in range(step - _AFTER + 1, step + 1) if s in losses]
        finite = [loss for loss in window if math.isfinite(loss)]
        if len(finite) == _AFTER and median(finite) <= limit:
            return step
    return None


def _within(event: Event) -> int:
    known = event.steps_to_recover
    return known if known is not None else event.last - event.first + 1


def poisson_interval(count: float, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Garwood 1936) interval of a Poisson mean after ``count`` events."""
    tail = (1 - confidence) / 2
    top = count + 10 * math.sqrt(count + 1) + 20

    def at_most(k: int, mean: float) -> float:
        if mean == 0:
            return 1.0
        return math.fsum(
            math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(k + 1)
        )

    k = int(count)
    low = 0.0 if k == 0 else _solve(lambda mean: 1 - at_most(k - 1, mean) - tail, top)
    return low, _solve(lambda mean: tail - at_most(k, mean), top)


def _solve(rising: Callable[[float], float], top: float) -> float:
    """The zero of a rising function in [0, top], by bisection."""
    low, high = 0.0, top
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def relapses(facts: Facts) -> tuple[Relapses, ...]:
    """The relapses within 500 and within 2,000 steps of a collapse."""
    last = {point.epoch: point.step for point in facts.points}  # points are in order
    found = aftermaths(facts.lineage, facts.triggers, last)
    return tuple(
        Relapses(steps, sum(label is not None for label in labels), sum(map(bool, labels)))
        for steps in WATCHED_STEPS
        for labels in [[one.relapsed_within(steps) for one in found]]
    )


# -------------------------------------------------------------------------------- what it has cost


def _discarded(facts: Facts) -> int:
    """Main-run steps that a collapse abandoned."""
    count = 0
    for entry in facts.lineage:
        count += sum(p.epoch == entry.epoch - 1 and p.step >= entry.base_step for p in facts.points)
    return count


def _adopted(facts: Facts) -> int:
    """Rollout steps that an epoch adopted: they are training, not cost."""
    return sum(max(one.state.step - one.base_step, 0) for one in facts.lineage)


# ------------------------------------------------------------------------------- rungs and the proxy


def rung_passes(decisions: Sequence[Decision]) -> tuple[RungPass, ...]:
    """Measured and passed by rung, over all decisions."""
    measured: dict[int, int] = {}
    passed: dict[int, int] = {}
    for decision in decisions:
        reached: dict[str, list[int]] = {}
        for trial in decision.trials:
            if trial.candidate != CONTROL:
                reached.setdefault(trial.candidate, []).append(trial.rung)
        good = {
            one.candidate
            for one in decision.judgements
            if one.verdict in (Verdict.ACCEPTED, Verdict.PASSED)
        }
        for name, rungs in reached.items():
            for rung in rungs:
                measured[rung] = measured.get(rung, 0) + 1
                went_on = rung < max(rungs) or name in good
                passed[rung] = passed.get(rung, 0) + int(went_on)
    return tuple(RungPass(rung, measured[rung], passed[rung]) for rung in sorted(measured))


def proxy_gaps(decisions: Sequence[Decision]) -> tuple[list[float], list[float]]:
    """|forecast - measured| loss of each candidate that was measured at the very step its forecast is
    of, nats/token, both with the mean of recent weights; and one rank correlation a branch.
    """
    gaps: list[float] = []
    correlations: list[float] = []
    for decision in decisions:
        pairs = []
        for trial in decision.trials:
            if trial.candidate == CONTROL or trial.rung != decision.draft.horizon:
                continue
            forecast = decision.draft.candidate(trial.candidate).forecast
            measured = trial.mean_weights_loss
            if forecast is None or forecast.abstained is not None or forecast.loss is None:
                continue
            if measured is not None and math.isfinite(measured):
                pairs.append((forecast.loss.point, measured))
        gaps += [abs(a - b) for a, b in pairs]
        if (rho := spearman(pairs)) is not None:
            correlations.append(rho)
    return gaps, correlations


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation; None below three pairs or where one side does not vary."""
    if len(pairs) < 3:
        return None
    first, second = _ranks([a for a, _ in pairs]), _ranks([b for _, b in pairs])
    x, y = fmean(first), fmean(second)
    spread = math.sqrt(
        math.fsum((a - x) ** 2 for a in first) * math.fsum((b - y) ** 2 for b in second)
    )
    if spread == 0:
        return None
    return math.fsum((a - x) * (b - y) for a, b in zip(first, second, strict=True)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks, ties shared."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]
