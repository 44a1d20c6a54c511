"""What a fitted network is worth on test runs: its figures, and whether each output is served."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkcast_proxy import evaluation
from forkcast_proxy.calibration import AdaptiveLevel, RiskTable
from forkcast_proxy.card import IntervalTable
from forkcast_proxy.network import Network
from forkcast_proxy.table import Table

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ALPHA, _TOP = 0.1, 6


def probability_of(logit: FloatArray) -> FloatArray:
    """Probabilities of logits."""
    probability: FloatArray = 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))
    return probability


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """figures: by name, on test runs. beaten: by output, whether it surely beat the trivial."""

    figures: dict[str, float | None]
    beaten: dict[str, bool]


def judge_loss(network: Network, train: Table, test: Table, interval: IntervalTable) -> Judgement:
    """The loss: mean absolute error in nats against last value and learning curves (each also with
    the constant change that was usual in training), order within forks, coverage.
    """
    mean, spread = network.predict(test.matrix)
    truth, runs = test.losses, test.targets.runs
    mine = np.abs(mean[:, 0] - truth) * test.reference
    figures: dict[str, float | None] = {"loss_mae": evaluation.mean_or_none(mine)}
    rivals = {}
    for name, guess in test.baselines.items():
        usual = float(np.nanmedian(train.losses - train.baselines[name]))
        rivals[name] = np.abs(guess - truth) * test.reference
        rivals[f"{name}_shifted"] = np.abs(guess + usual - truth) * test.reference
    for name, errors in rivals.items():
        figures[f"loss_mae_{name}"] = evaluation.mean_or_none(errors)
    best = min(rivals, key=lambda name: figures[f"loss_mae_{name}"] or math.inf)
    better = evaluation.surely_positive(evaluation.by_run(rivals[best] - mine, runs))
    order, orders = _orders(mean[:, 0], train, test)
    figures |= order
    if interval.quantile is not None:
        known = np.isfinite(truth)
        half = interval.quantile * (spread[:, 0] + interval.floor)
        inside = (np.abs(mean[:, 0] - truth) <= half)[known].astype(float)
        figures |= _bounds("loss_coverage", inside, runs[known])
        chosen = _selected(mean[:, 0], test)[known]
        figures |= _bounds("loss_coverage_selected", inside[chosen], runs[known][chosen])
        figures["loss_half_width"] = evaluation.mean_or_none(half * test.reference)
    return Judgement(figures, {"loss": better and orders and interval.quantile is not None})


def _orders(
    forecast: FloatArray, train: Table, test: Table
) -> tuple[dict[str, float | None], bool]:
    """Order of the candidates within forks, against the usual change of each class of action."""
    candidate = np.array([not one.action.is_identity for one in test.records])
    usual = _usual_by_kind(train)
    plain = np.array([usual.get(one.action.kind, 0.0) for one in test.records])
    part = test.rows(candidate)
    truth, forks, runs = part.losses, part.targets.forks, part.targets.runs
    figures: dict[str, float | None] = {}
    kept = {}
    for name, guess in (("", forecast[candidate]), ("_by_kind", plain[candidate])):
        found, of = evaluation.over_forks(evaluation.rank_correlation, guess, truth, forks, runs)
        recall, _ = evaluation.over_forks(evaluation.top_recall(_TOP), guess, truth, forks, runs)
        first, _ = evaluation.over_forks(evaluation.top_recall(1), guess, truth, forks, runs)
        kept[name] = (found, of)
        figures[f"rank_correlation{name}"] = evaluation.mean_or_none(found)
        figures[f"top{_TOP}_recall{name}"] = evaluation.mean_or_none(recall)
        figures[f"top1_recall{name}"] = evaluation.mean_or_none(first)
    for count in (1, _TOP):
        chance, _ = evaluation.over_forks(
            evaluation.chance_of(count), forecast[candidate], truth, forks, runs
        )
        figures[f"top{count}_recall_by_chance"] = evaluation.mean_or_none(chance)
    found, of = kept[""]
    positive = evaluation.surely_positive(evaluation.by_run(found, of))
    gain = found - kept["_by_kind"][0]
    return figures, positive and evaluation.surely_positive(evaluation.by_run(gain, of))


def _usual_by_kind(train: Table) -> dict[str, float]:
    """Median change of each class of action relative to its fork's mean."""
    losses, forks = train.losses, train.targets.forks
    kinds = np.array([one.action.kind for one in train.records])
    known = np.isfinite(losses)
    sums = np.bincount(forks[known], losses[known], int(forks.max()) + 1)
    counts = np.bincount(forks[known], minlength=len(sums))
    rest = losses - sums[forks] / np.maximum(counts[forks], 1)
    return {
        str(kind): float(np.median(rest[known & (kinds == kind)]))
        for kind in np.unique(kinds[known])
    }


def _selected(forecast: FloatArray, table: Table) -> BoolArray:
    """The better half of each fork by forecast: what a selection would look at."""
    chosen = np.zeros(len(forecast), dtype=bool)
    for fork in np.unique(table.targets.forks):
        rows = np.flatnonzero(table.targets.forks == fork)
        chosen[rows[np.argsort(forecast[rows], kind="stable")[: (len(rows) + 1) // 2]]] = True
    return chosen


def judge_divergence(network: Network, train: Table, test: Table, risk: RiskTable) -> Judgement:
    """The event: Brier score against the training runs' rate of its horizon; what the gate passes."""
    mean, _ = network.predict(test.matrix)
    probability, happened = probability_of(mean[:, 1]), test.targets.values[:, 1]
    horizons = np.array([one.outcome.horizon for one in train.records])
    rate = np.array(
        [
            train.targets.values[horizons == one.outcome.horizon, 1].mean()
            if (horizons == one.outcome.horizon).any()
            else train.targets.values[:, 1].mean()
            for one in test.records
        ]
    )
    mine, trivial = (probability - happened) ** 2, (rate - happened) ** 2
    upper = np.array([risk.bounds(float(p))[1] for p in probability])
    passed = upper < 0.2
    runs = test.targets.runs
    figures: dict[str, float | None] = {
        "event_rate": float(happened.mean()),
        "event_brier": float(mine.mean()),
        "event_brier_base_rate": float(trivial.mean()),
        "event_gate_passes": float(passed.mean()),
        **_bounds("event_rate_where_passed", happened[passed], runs[passed]),
    }
    better = evaluation.surely_positive(evaluation.by_run(trivial - mine, runs))
    return Judgement(figures, {"divergence": better})


def judge_recovery(
    network: Network, train: Table, test: Table, interval: IntervalTable
) -> Judgement:
    """log(1 + recovery steps): error against the training runs' median."""
    mean, _ = network.predict(test.matrix)
    truth = test.targets.values[:, 2]
    mine = np.abs(mean[:, 2] - truth)
    usual = np.abs(float(np.median(train.targets.values[:, 2])) - truth)
    figures: dict[str, float | None] = {
        "recovery_log_mae": float(mine.mean()),
        "recovery_log_mae_median": float(usual.mean()),
    }
    better = evaluation.surely_positive(evaluation.by_run(usual - mine, test.targets.runs))
    return Judgement(figures, {"recovery": better and interval.quantile is not None})


def adaptive_coverage(
    network: Network, test: Table, interval: IntervalTable, scores: FloatArray, names: list[int]
) -> dict[str, float | None]:
    """Coverage where the level adapts after every test fork's first outcome, in run order."""
    mean, spread = network.predict(test.matrix)
    _, first = np.unique(test.targets.forks, return_index=True)
    level, inside = AdaptiveLevel(ALPHA, ALPHA), []
    for row in first[test.targets.known[first, 0]]:
        score = abs(mean[row, 0] - test.targets.values[row, 0]) / (spread[row, 0] + interval.floor)
        missed = bool(score > level.quantile(scores, names))
        inside.append(float(not missed))
        level = level.after(missed=missed)
    return {
        "loss_coverage_adaptive": evaluation.mean_or_none(np.array(inside)),
        "loss_coverage_adaptive_outcomes": float(len(inside)),
    }


def _bounds(name: str, inside: FloatArray, runs: NDArray[np.int64]) -> dict[str, float | None]:
    share, low, high = evaluation.share_bounds(inside, runs)
    return {
        name: share if math.isfinite(share) else None,
        f"{name}_low": low,
        f"{name}_high": high,
    }
