"""How far a forecast may be trusted: split conformal bounds, binomial bounds, adaptive levels.

Pure numpy. Every function fails closed: with too few calibration runs the bound is infinite (or 1
for a probability), never a guess.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
_BISECTIONS = 100


def conformal_quantile(scores: ArrayLike, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score: a new exchangeable score stays at or below
    it with probability at least 1 - alpha. Infinite where n < 1/alpha - 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = math.ceil((len(ordered) + 1) * (1 - alpha) - 1e-9)
    return float(ordered[rank - 1]) if 1 <= rank <= len(ordered) else math.inf


def grouped_quantile(scores: ArrayLike, groups: Sequence[Hashable], alpha: float) -> float:
    """The same where scores come in groups (candidates of one run) of which only the groups are
    exchangeable: each of K groups carries the mass 1/(K + 1), spread evenly over its scores, and
    the rest lies at infinity (Lee, Barber and Willett, "Distribution-free inference with
    hierarchical data", HCP). With one score a group it is `conformal_quantile`.
    """
    values = np.asarray(scores, dtype=np.float64)
    kinds, index, counts = np.unique(
        np.array([str(one) for one in groups]), return_inverse=True, return_counts=True
    )
    if not len(values):
        return math.inf
    mass = 1.0 / ((len(kinds) + 1) * counts[index])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(mass[order]) >= (1 - alpha) - 1e-9
    return float(values[order][np.argmax(reached)]) if reached.any() else math.inf


def normalised_scores(truth: ArrayLike, forecast: ArrayLike, spread: ArrayLike) -> FloatArray:
    """|truth - forecast| / spread, spread > 0: wide where the ensemble disagrees."""
    return one_sided_scores(truth, forecast, spread, absolute=True)


def one_sided_scores(
    truth: ArrayLike, forecast: ArrayLike, spread: ArrayLike, *, absolute: bool = False
) -> FloatArray:
    """(truth - forecast) / spread: its quantile bounds the truth from above only."""
    rest = np.asarray(truth, dtype=np.float64) - np.asarray(forecast, dtype=np.float64)
    scores: FloatArray = (np.abs(rest) if absolute else rest) / np.asarray(spread)
    return scores


def _binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of X ~ Binomial(n, p)."""
    if k <= 0:
        return 1.0
    if p <= 0.0 or p >= 1.0:
        return float(p >= 1.0)
    log_p, log_q = math.log(p), math.log1p(-p)
    terms = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * log_p
        + (n - i) * log_q
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _root(rising: Callable[[float], float], level: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2


def binomial_lower(k: int, n: int, alpha: float) -> float:
    """The exact one-sided lower bound of a probability after k events in n (Clopper and Pearson,
    1934), at confidence 1 - alpha; 0 where n is 0.
    """
    return 0.0 if k <= 0 or n <= 0 else _root(lambda p: _binomial_tail(k, n, p), alpha)


def binomial_upper(k: int, n: int, alpha: float) -> float:
    """The exact one-sided upper bound; 1 where n is 0."""
    if n <= 0 or k >= n:
        return 1.0
    return _root(lambda p: _binomial_tail(k + 1, n, p), 1 - alpha)


@dataclass(frozen=True, slots=True)
class AdaptiveLevel:
    """Adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170, eq. 2): the working alpha
    moves by gamma (target - error) after every outcome, so that the long-run error rate meets the
    target whatever the order of the data. gamma is .05 and not the paper's .005: a run sees tens
    of decisions, and at .005 its bound says nothing before some 800.
    """

    target: float
    alpha: float
    gamma: float = 0.05

    def after(self, *, missed: bool) -> AdaptiveLevel:
        """The level after an outcome that was or was not inside its bounds."""
        moved = self.alpha + self.gamma * (self.target - float(missed))
        return AdaptiveLevel(self.target, moved, self.gamma)

    def quantile(self, scores: ArrayLike, groups: Sequence[Hashable]) -> float:
        """The score's bound at the present level: infinite at alpha <= 0, below all at >= 1."""
        if self.alpha <= 0.0:
            return math.inf
        return -math.inf if self.alpha >= 1.0 else grouped_quantile(scores, groups, self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskTable:
    """Forecast probability to bounds on the true one, by bins of the forecast.

    A conformal bound on a yes-or-no outcome is vacuous as soon as events are more frequent than
    alpha, so the *probability* is bounded instead: Clopper-Pearson on the calibration outcomes
    whose forecast fell into the same bin. Runs are the units that count: a run's share of events
    in the bin is one (fractional) observation, rounded against us.

    edges: [B - 1] inner edges, rising. low, high: [B] one-sided bounds. runs: [B].
    """

    edges: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: tuple[int, ...]

    @property
    def least(self) -> float:
        """The smallest upper bound it can state: a gate below it refuses everything."""
        return min(self.high)

    def bounds(self, probability: float) -> tuple[float, float]:
        """(lower, upper) of the true probability, in [0, 1]."""
        index = bisect_right(self.edges, probability)
        return self.low[index], self.high[index]


def risk_table(
    probability: ArrayLike,
    events: ArrayLike,
    groups: Sequence[Hashable],
    *,
    alpha: float,
    bins: int,
) -> RiskTable:
    """Bins of equal counts of the calibration forecasts; the bounds are made to rise with them."""
    forecast, happened = np.asarray(probability, float), np.asarray(events, bool)
    names = np.array([str(one) for one in groups])
    if not len(forecast):
        return RiskTable(edges=(), low=(0.0,), high=(1.0,), runs=(0,))
    edges = np.unique(np.quantile(forecast, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, forecast, side="right")
    low, high, runs = [], [], []
    for number in range(len(edges) + 1):
        inside = place == number
        kinds = np.unique(names[inside])
        shares = math.fsum(float(happened[inside & (names == kind)].mean()) for kind in kinds)
        runs.append(len(kinds))
        low.append(binomial_lower(math.floor(shares + 1e-9), len(kinds), alpha))
        high.append(binomial_upper(math.ceil(shares - 1e-9), len(kinds), alpha))
    return RiskTable(
        edges=tuple(map(float, edges)),
        low=tuple(map(float, np.minimum.accumulate(low[::-1])[::-1])),
        high=tuple(map(float, np.maximum.accumulate(high))),
        runs=tuple(runs),
    )
