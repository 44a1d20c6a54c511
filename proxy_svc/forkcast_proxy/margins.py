"""What an action seems to gain on a healthy run, and the acceptance margins that follow. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forkcast.acceptance import UNKNOWN_MARGIN
from forkcast_proxy.calibration import grouped_quantile
from forkcast_proxy.records import Record

#: Share of gains on healthy forks that may exceed a margin.
ALPHA = 0.05
_STEP = 1e-3  # margins are rounded up to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """control's minus candidate's mean-weights validation loss, nats/token, at a horizon."""

    kind: str
    horizon: int
    run: str
    fork: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Gains of one kind of action at one horizon. median: nats/token. bound: their 95 % quantile
    with runs as the units, None if the runs are too few for one. beyond_floor: share above the
    floor.
    """

    kind: str
    horizon: int
    forks: int
    runs: int
    median: float
    bound: float | None
    beyond_floor: float


def gains(records: Iterable[Record]) -> list[Gain]:
    """Of the candidates of healthy forks whose control and candidate both have a finite loss. A
    candidate that diverged gained nothing and is left out, which errs to the larger margin.
    """
    found = []
    for one in records:
        value = one.outcome.control_mean_loss - one.outcome.mean_loss
        if one.outcome.healthy and not one.action.is_identity and math.isfinite(value):
            found.append(
                Gain(
                    kind=one.action.kind,
                    horizon=one.outcome.horizon,
                    run=one.fork.run,
                    fork=one.fork.step,
                    value=value,
                )
            )
    return found


def measure(found: Sequence[Gain]) -> list[Measured]:
    """One figure for each kind and horizon, sorted. Raises ValueError if there is no gain."""
    if not found:
        raise ValueError("records: no healthy fork has a finite gain; collect more runs")
    measured = []
    for kind, horizon in sorted({(one.kind, one.horizon) for one in found}):
        part = [one for one in found if (one.kind, one.horizon) == (kind, horizon)]
        values = np.array([one.value for one in part])
        bound = grouped_quantile(values, [one.run for one in part], ALPHA)
        measured.append(
            Measured(
                kind=kind,
                horizon=horizon,
                forks=len({(one.run, one.fork) for one in part}),
                runs=len({one.run for one in part}),
                median=float(np.median(values)),
                bound=bound if math.isfinite(bound) else None,
                beyond_floor=float((values > UNKNOWN_MARGIN).mean()),
            )
        )
    return measured


def table(measured: Iterable[Measured]) -> dict[str, dict[int, float]]:
    """Margins in nats/token by kind and horizon: the bound rounded up, at least the floor and the
    margin of every shorter horizon (what a longer look seems to allow below a shorter one is noise
    of few runs). Kinds without a bound are left out: the floor holds for them.
    """
    margins: dict[str, dict[int, float]] = {}
    for one in sorted(measured, key=lambda one: (one.kind, one.horizon)):
        if one.bound is None:
            continue
        rounded = round(math.ceil(one.bound / _STEP - 1e-9) * _STEP, 6)
        earlier = margins.setdefault(one.kind, {}).values()
        margins[one.kind][one.horizon] = max(rounded, UNKNOWN_MARGIN, *earlier)
    return margins


def forks_beyond(
    found: Iterable[Gain], margins: Mapping[str, Mapping[int, float]], at: int
) -> float:
    """Share of the healthy forks at which some candidate gains more than its margin ``at`` steps
    after the fork: how often a margin alone would let a branch act on a run that needs nothing.
    """
    best: dict[tuple[str, int], bool] = {}
    for one in found:
        if one.horizon == at:
            beyond = one.value > margins.get(one.kind, {}).get(at, UNKNOWN_MARGIN)
            best[one.run, one.fork] = best.get((one.run, one.fork), False) or beyond
    return float(np.mean(list(best.values()))) if best else math.nan


def beyond_unseen(found: Sequence[Gain], at: int, folds: int = 5) -> float:
    """The same with margins measured without the fork's fold of runs."""
    names = sorted({one.run for one in found})
    fold = {name: number % folds for number, name in enumerate(names)}
    shares, weights = [], []
    for number in range(folds):
        inside = [one for one in found if fold[one.run] == number and one.horizon == at]
        outside = [one for one in found if fold[one.run] != number]
        if inside and outside:
            shares.append(forks_beyond(inside, table(measure(outside)), at))
            weights.append(len({(one.run, one.fork) for one in inside}))
    return float(np.average(shares, weights=weights)) if shares else math.nan
