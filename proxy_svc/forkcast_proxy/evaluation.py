"""How good a fitted model is on runs it never saw, run by run, against the trivial forecasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from forkcast_proxy.calibration import binomial_lower, binomial_upper

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_RESAMPLED, _LEVEL, _LEAST_RUNS = 4000, 0.025, 8


def by_run(values: FloatArray, runs: IntArray) -> FloatArray:
    """Mean of the finite values of each run; runs without any are left out."""
    kept = np.isfinite(values)
    return np.array([values[kept & (runs == run)].mean() for run in np.unique(runs[kept])])


def surely_positive(per_run: FloatArray, *, seed: int = 0) -> bool:
    """Whether the mean over runs is above 0 by a sign-flip test over runs at the 2.5 % level, which
    holds its level at any number of runs (a bootstrap does not); False below eight.
    """
    if len(per_run) < _LEAST_RUNS:
        return False
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_RESAMPLED, len(per_run)))
    as_large = int((signs @ per_run >= per_run.sum()).sum())
    return (as_large + 1) / (_RESAMPLED + 1) <= _LEVEL


def ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, ties at their mean."""
    order = np.argsort(values, kind="stable")
    placed = np.empty(len(values))
    placed[order] = np.arange(len(values))
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.bincount(index, placed) / counts)[index]


def rank_correlation(forecast: FloatArray, truth: FloatArray) -> float:
    """Spearman's; NaN where either side is constant or there are fewer than three."""
    if len(truth) < 3:
        return np.nan
    a, b = ranks(forecast), ranks(truth)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else np.nan


def over_forks(
    figure: Callable[[FloatArray, FloatArray], float],
    forecast: FloatArray,
    truth: FloatArray,
    forks: IntArray,
    runs: IntArray,
) -> tuple[FloatArray, IntArray]:
    """(figure of each fork, its run). A diverged outcome (NaN) counts as worse than any."""
    worst = np.where(np.isfinite(truth), truth, np.nanmax(truth, initial=0.0) + 1e3)
    labels: Iterable[np.int64] = np.unique(forks)
    found = [
        (figure(forecast[forks == one], worst[forks == one]), runs[forks == one][0])
        for one in labels
    ]
    return np.array([f for f, _ in found], float), np.array([r for _, r in found], np.int64)


def top_recall(count: int) -> Callable[[FloatArray, FloatArray], float]:
    """Whether the true best is among the ``count`` best forecasts; NaN where that is certain."""

    def figure(forecast: FloatArray, truth: FloatArray) -> float:
        if len(truth) <= count:
            return np.nan
        return float(np.argmin(truth) in np.argsort(forecast, kind="stable")[:count])

    return figure


def chance_of(count: int) -> Callable[[FloatArray, FloatArray], float]:
    """The same by drawing."""

    def figure(_forecast: FloatArray, truth: FloatArray) -> float:
        return np.nan if len(truth) <= count else count / len(truth)

    return figure


def share_bounds(inside: FloatArray, runs: IntArray, alpha: float = 0.05) -> tuple[float, ...]:
    """(share of rows, lower, upper): Clopper-Pearson with runs as the units, a run's share being
    one observation, rounded outwards.
    """
    if not len(inside):
        return np.nan, 0.0, 1.0
    shares = by_run(inside, runs)
    total, n = float(shares.sum()), len(shares)
    low = binomial_lower(int(np.floor(total + 1e-9)), n, alpha / 2)
    return float(inside.mean()), low, binomial_upper(int(np.ceil(total - 1e-9)), n, alpha / 2)


def mean_or_none(values: FloatArray) -> float | None:
    """The mean of the finite values, None if there is none."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else None
