"""What a way of fitting is worth on runs it did not see: figures, and which outputs are served.

Every row is judged by a network, an interval and a rival that were made without its run's fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkcast.decision import Candidate
from forkcast.ranking import by_portfolio
from forkcast_proxy import evaluation
from forkcast_proxy.calibration import (
    AdaptiveLevel,
    RiskTable,
    grouped_quantile,
    normalised_scores,
    risk_table,
)
from forkcast_proxy.card import IntervalTable
from forkcast_proxy.table import FOLDS, Table

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ALPHA = 0.1
#: The default of `branching.acceptance.maxRiskQuantile`: a risk whose table cannot get below it is
#: no gate but a veto, and is withheld (docs/decisions/010).
RISK_LEVEL = 0.2
_BINS = 4
_TOPS = (1, 2, 6)
Figures = dict[str, float | None]


def probability_of(logit: FloatArray) -> FloatArray:
    """Probabilities of logits."""
    probability: FloatArray = 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))
    return probability


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Forecasts out of fold. mean, spread: [N, 3]; fold: [N], of the row's run."""

    table: Table
    mean: FloatArray
    spread: FloatArray
    fold: NDArray[np.int64]

    def parts(self) -> Iterator[tuple[BoolArray, BoolArray]]:
        """(rows of a fold, all other rows) for each fold."""
        for number in range(FOLDS):
            yield self.fold == number, self.fold != number


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """figures by name; served: the horizons at which the output surely beat the trivial."""

    figures: Figures
    served: tuple[int, ...]


# ------------------------------------------------------------------------------------------ calibration


def interval_of(held: Held, rows: BoolArray, column: int) -> IntervalTable:
    """The interval of an amount from the forecasts of these rows."""
    known = rows & held.table.targets.known[:, column]
    floor = max(float(np.median(held.spread[rows, column])) if rows.any() else 0.0, 1e-6)
    runs = held.table.targets.runs[known]
    quantile = grouped_quantile(_scores(held, known, column, floor), runs.tolist(), ALPHA)
    return IntervalTable(
        alpha=ALPHA,
        quantile=quantile if math.isfinite(quantile) else None,
        floor=floor,
        runs=len(np.unique(runs)),
    )


def _scores(held: Held, rows: BoolArray, column: int, floor: float) -> FloatArray:
    truth = held.table.targets.values[rows, column]
    return normalised_scores(truth, held.mean[rows, column], held.spread[rows, column] + floor)


def risk_of(held: Held, rows: BoolArray) -> RiskTable:
    """Forecast probability to bounds from these rows."""
    return risk_table(
        probability_of(held.mean[rows, 1]),
        held.table.targets.values[rows, 1] > 0.5,
        held.table.targets.runs[rows].tolist(),
        alpha=ALPHA,
        bins=_BINS,
    )


# ------------------------------------------------------------------------------------------ the outputs


def judge_loss(held: Held, horizons: tuple[int, ...]) -> Judgement:
    """The loss: mean absolute error in nats against last value and learning curves (each also with
    the constant change that was usual elsewhere), order within forks, coverage. It is served where
    both the error and the order surely beat their best rival.
    """
    table, figures, served = held.table, Figures(), []
    truth, runs = table.losses, table.targets.runs
    error = np.abs(held.mean[:, 0] - truth) * table.reference
    rivals = {
        name: np.abs(guess - truth) * table.reference for name, guess in _loss_rivals(held).items()
    }
    rivals_in_order = _order_rivals(held)
    inside, half = _covered(held)
    for horizon in horizons:
        rows = table.horizons == horizon
        errors = {name: evaluation.mean_or_none(e[rows]) for name, e in rivals.items()}
        figures[f"loss_mae_h{horizon}"] = evaluation.mean_or_none(error[rows])
        figures |= {f"loss_mae_{name}_h{horizon}": value for name, value in errors.items()}
        best = min(errors, key=lambda name, found=errors: found[name] or math.inf)  # type: ignore[misc]
        gain = evaluation.by_run((rivals[best] - error)[rows], runs[rows])
        order, orders = _orders(held, rivals_in_order, rows, horizon)
        figures |= order
        figures |= _coverage(held, inside, rows, horizon)
        figures[f"loss_half_width_h{horizon}"] = evaluation.mean_or_none(half[rows])
        if evaluation.surely_positive(gain) and orders and np.isfinite(half[rows]).all():
            served.append(horizon)
    return Judgement(figures, tuple(served))


def _loss_rivals(held: Held) -> dict[str, FloatArray]:
    """The trivial forecasts, as they are and shifted by the median change of the other folds."""
    table, horizons = held.table, held.table.horizons
    found = dict(table.baselines)
    for name, guess in table.baselines.items():
        shifted = guess.copy()
        for inside, outside in held.parts():
            for horizon in np.unique(horizons):
                here, there = horizons == horizon, outside & (horizons == horizon)
                shifted[inside & here] += np.nanmedian((table.losses - guess)[there])
        found[f"{name}_shifted"] = shifted
    return found


def _order_rivals(held: Held) -> dict[str, FloatArray]:
    """Orders without a model: the usual change of each kind of action at the horizon (other folds),
    and the heuristic portfolio's place of each candidate.
    """
    table, horizons = held.table, held.table.horizons
    by_kind, place = np.zeros(len(table.records)), np.zeros(len(table.records))
    kinds = np.array([one.action.kind for one in table.records])
    for inside, outside in held.parts():
        for horizon in np.unique(horizons):
            usual = _usual_by_kind(table.rows(outside & (horizons == horizon)))
            rows = np.flatnonzero(inside & (horizons == horizon))
            by_kind[rows] = [usual.get(str(kind), 0.0) for kind in kinds[rows]]
    for fork in np.unique(table.targets.forks):
        rows = np.flatnonzero(table.targets.forks == fork)
        drawn = [Candidate(name=str(n), action=table.records[n].action) for n in map(int, rows)]
        for rank, name in enumerate(by_portfolio(drawn)):
            place[int(name)] = rank
    return {"by_kind": by_kind, "portfolio": place}


def _usual_by_kind(table: Table) -> dict[str, float]:
    """Median change of each class of action relative to its fork's mean."""
    losses, forks = table.losses, table.targets.forks
    kinds = np.array([one.action.kind for one in table.records])
    known = np.isfinite(losses)
    size = int(forks.max()) + 1 if len(forks) else 0
    sums = np.bincount(forks[known], losses[known], size)
    counts = np.bincount(forks[known], minlength=size)
    rest = losses - (sums / np.maximum(counts, 1))[forks]
    return {
        str(kind): float(np.median(rest[known & (kinds == kind)]))
        for kind in np.unique(kinds[known])
    }


def _orders(
    held: Held, rivals: dict[str, FloatArray], rows: BoolArray, horizon: int
) -> tuple[Figures, bool]:
    """Order of the candidates within forks, over all and over healthy and unstable runs apart; and
    whether it surely beats every rival.
    """
    table, figures = held.table, Figures()
    candidate = rows & np.array([not one.action.is_identity for one in table.records])
    healthy = np.array([one.fork.regime == "healthy" for one in table.records])
    groups = {"": candidate, "_healthy": candidate & healthy, "_unstable": candidate & ~healthy}
    surely = True
    for group, chosen in groups.items():
        if not chosen.any():
            continue
        truth, forks, runs = (
            values[chosen] for values in (table.losses, table.targets.forks, table.targets.runs)
        )
        kept = {}
        for name, guess in {"": held.mean[:, 0], **{f"_{n}": g for n, g in rivals.items()}}.items():
            end = f"{name}{group}_h{horizon}"
            kept[name], of = evaluation.over_forks(
                evaluation.rank_correlation, guess[chosen], truth, forks, runs
            )
            figures[f"rank_correlation{end}"] = evaluation.mean_or_none(kept[name])
            for count in _TOPS:
                recall = evaluation.top_recall(count)
                found, _ = evaluation.over_forks(recall, guess[chosen], truth, forks, runs)
                figures[f"top{count}_recall{end}"] = evaluation.mean_or_none(found)
        for count in _TOPS:
            chance = evaluation.chance_of(count)
            found, _ = evaluation.over_forks(chance, truth, truth, forks, runs)
            figures[f"top{count}_recall_by_chance{group}_h{horizon}"] = evaluation.mean_or_none(
                found
            )
        if not group:
            gains = [kept[""], *(kept[""] - kept[f"_{name}"] for name in rivals)]
            surely = all(evaluation.surely_positive(evaluation.by_run(g, of)) for g in gains)
    return figures, surely


def _covered(held: Held) -> tuple[FloatArray, FloatArray]:
    """(1 where the loss lay inside its interval, 0 outside, NaN unknown; half widths in nats)."""
    table = held.table
    half = np.full(len(table.records), np.inf)
    for inside, outside in held.parts():
        interval = interval_of(held, outside, 0)
        if interval.quantile is not None:
            half[inside] = interval.quantile * (held.spread[inside, 0] + interval.floor)
    covered = (np.abs(held.mean[:, 0] - table.losses) <= half).astype(np.float64)
    return np.where(np.isfinite(table.losses), covered, np.nan), half * table.reference


def _coverage(held: Held, inside: FloatArray, rows: BoolArray, horizon: int) -> Figures:
    runs = held.table.targets.runs
    known = rows & np.isfinite(inside)
    figures = _bounds(f"loss_coverage_h{horizon}", inside[known], runs[known])
    chosen = known & _selected(held.mean[:, 0], held.table)
    return figures | _bounds(f"loss_coverage_selected_h{horizon}", inside[chosen], runs[chosen])


def _selected(forecast: FloatArray, table: Table) -> BoolArray:
    """The better half of each fork by forecast: what a selection would look at."""
    chosen = np.zeros(len(forecast), dtype=bool)
    for fork in np.unique(table.targets.forks):
        rows = np.flatnonzero(table.targets.forks == fork)
        chosen[rows[np.argsort(forecast[rows], kind="stable")[: (len(rows) + 1) // 2]]] = True
    return chosen


def judge_divergence(held: Held, horizons: tuple[int, ...]) -> tuple[Judgement, Judgement]:
    """(the event's probability, the risk). The probability is served where its Brier score surely
    beats the other folds' rate; the risk where, besides, its table reaches below RISK_LEVEL and
    what it let pass out of fold kept to that level.
    """
    table, figures, served, gated = held.table, Figures(), [], []
    probability, happened = probability_of(held.mean[:, 1]), table.targets.values[:, 1]
    runs, gate = table.targets.runs, Figures()
    for horizon in horizons:
        rows = table.horizons == horizon
        rate, upper = np.zeros(len(rows)), np.ones(len(rows))
        for inside, outside in held.parts():
            rate[inside & rows] = happened[outside & rows].mean()
            bounds = risk_of(held, outside & rows)
            upper[inside & rows] = [bounds.bounds(p)[1] for p in probability[inside & rows]]
        mine, trivial = (probability - happened) ** 2, (rate - happened) ** 2
        passed = rows & (upper < RISK_LEVEL)
        least = risk_of(held, rows).least
        figures |= {
            f"event_rate_h{horizon}": float(happened[rows].mean()),
            f"event_brier_h{horizon}": float(mine[rows].mean()),
            f"event_brier_base_rate_h{horizon}": float(trivial[rows].mean()),
        }
        gate |= {
            f"risk_least_h{horizon}": least,
            f"risk_gate_passes_h{horizon}": float(passed[rows].mean()),
            **_bounds(f"event_rate_where_passed_h{horizon}", happened[passed], runs[passed]),
        }
        if evaluation.surely_positive(evaluation.by_run((trivial - mine)[rows], runs[rows])):
            served.append(horizon)
            if least < RISK_LEVEL and passed.any() and happened[passed].mean() <= RISK_LEVEL:
                gated.append(horizon)
    return Judgement(figures, tuple(served)), Judgement(gate, tuple(gated))


def judge_recovery(held: Held, horizons: tuple[int, ...]) -> Judgement:
    """log(1 + recovery steps): error against the other folds' median."""
    table, figures, served = held.table, Figures(), []
    truth, everyone = table.targets.values[:, 2], np.ones(len(table.records), dtype=bool)
    for horizon in horizons:
        rows = table.horizons == horizon
        usual = np.zeros(len(rows))
        for inside, outside in held.parts():
            usual[inside & rows] = np.median(truth[outside & rows])
        mine, theirs = np.abs(held.mean[:, 2] - truth), np.abs(usual - truth)
        figures[f"recovery_log_mae_h{horizon}"] = float(mine[rows].mean())
        figures[f"recovery_log_mae_median_h{horizon}"] = float(theirs[rows].mean())
        figures[f"recovery_never_left_h{horizon}"] = float((truth[rows] == 0.0).mean())
        gain = evaluation.by_run((theirs - mine)[rows], table.targets.runs[rows])
        if evaluation.surely_positive(gain) and interval_of(held, everyone, 2).quantile is not None:
            served.append(horizon)
    return Judgement(figures, tuple(served))


def adaptive_coverage(held: Held) -> Figures:
    """Coverage of the loss where the level adapts after every fork's first outcome, in run order."""
    table, level, inside = held.table, AdaptiveLevel(ALPHA, ALPHA), []
    known = table.targets.known[:, 0]
    others = {}
    for number, (_, outside) in enumerate(held.parts()):
        floor = interval_of(held, outside, 0).floor
        rows = outside & known
        others[number] = floor, _scores(held, rows, 0, floor), table.targets.runs[rows].tolist()
    _, first = np.unique(table.targets.forks, return_index=True)
    for row in first[known[first]]:
        floor, scores, names = others[int(held.fold[row])]
        one = np.arange(len(known)) == row
        missed = bool(_scores(held, one, 0, floor)[0] > level.quantile(scores, names))
        inside.append(float(not missed))
        level = level.after(missed=missed)
    return {
        "loss_coverage_adaptive": evaluation.mean_or_none(np.array(inside)),
        "loss_coverage_adaptive_outcomes": float(len(inside)),
    }


def _bounds(name: str, inside: FloatArray, runs: NDArray[np.int64]) -> Figures:
    share, low, high = evaluation.share_bounds(inside, runs)
    return {
        name: share if math.isfinite(share) else None,
        f"{name}_low": low,
        f"{name}_high": high,
    }
