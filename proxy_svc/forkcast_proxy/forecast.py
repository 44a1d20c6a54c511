"""A checked model's numbers to forecasts with bounds; abstains wherever the card says it must."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from forkcast.decision import Candidate
from forkcast.records import Forecast, Interval, Window
from forkcast_proxy.calibration import RiskTable
from forkcast_proxy.card import SERVED, Card, IntervalTable
from forkcast_proxy.features import FEATURE_NAMES, FloatMatrix, features, reference_loss
from forkcast_proxy.heuristic import abstain, abstained
from forkcast_proxy.session import Model


def forecast(
    model: Model, window: Window, candidates: Sequence[Candidate], horizon: int
) -> tuple[list[Forecast], str]:
    """(one forecast a candidate, in order; a note on what was withheld, or "")."""
    card = model.card
    if not card.horizons[0] <= horizon <= card.horizons[-1]:
        reason = (
            f"the model forecasts {card.horizons[0]} to {card.horizons[-1]} steps ahead, "
            f"asked were {horizon}"
        )
        return abstain(candidates, reason), reason
    reference = reference_loss(window)
    if reference is None:
        reason = "the window holds no finite loss"
        return abstain(candidates, reason), reason
    served = at_horizon(card, horizon)
    withheld = [name for name in SERVED if name not in served]
    if len(withheld) == len(SERVED):
        reason = f"the model is no better than a trivial forecast in anything at +{horizon}"
        return abstain(candidates, reason), reason
    matrix = features(window, [one.action for one in candidates], horizon)
    strange = outside(card, matrix)
    means, spreads = model.run(matrix) if len(candidates) else (matrix, matrix)
    risks = card.risk[int(np.searchsorted(card.horizons, horizon))]
    answers = [
        abstained(one.name, f"out of distribution: {odd}")
        if odd is not None
        else _one(card, served, risks, one.name, reference, mean, spread)
        for one, odd, mean, spread in zip(
            candidates, strange, means.tolist(), spreads.tolist(), strict=True
        )
    ]
    note = f"withheld at +{horizon}: {', '.join(withheld)}" if withheld else ""
    return answers, note


def at_horizon(card: Card, horizon: int) -> frozenset[str]:
    """What may be served so many steps ahead. Between two fitted horizons both must allow it; a
    risk needs only the farther one, for an event may only come later.
    """
    above = min(h for h in card.horizons if h >= horizon)
    below = max(h for h in card.horizons if h <= horizon)
    return frozenset(
        name
        for name, horizons in card.served.items()
        if above in horizons and (name == "risk" or below in horizons)
    )


def outside(card: Card, matrix: FloatMatrix) -> list[str | None]:
    """For each row the first feature that lies outside the card's range, None if none does."""
    low, high = np.array(card.feature_low), np.array(card.feature_high)
    wrong = (matrix < low - 1e-5) | (matrix > high + 1e-5)
    return [FEATURE_NAMES[int(np.argmax(row))] if row.any() else None for row in wrong]


def _one(
    card: Card,
    served: frozenset[str],
    risks: RiskTable,
    name: str,
    reference: float,
    mean: list[float],
    spread: list[float],
) -> Forecast:
    if not all(map(math.isfinite, (*mean, *spread))):
        return abstained(name, "the model gave a non-finite number")
    loss = _interval(card.loss, mean[0], spread[0]) if "loss" in served else None
    steps = _interval(card.recovery, mean[2], spread[2]) if "recovery" in served else None
    low, high = risks.bounds(p := sigmoid(mean[1]))
    probability = Interval(min(max(p, low), high), low, high) if "divergence" in served else None
    risk = high if "risk" in served else None
    return Forecast(
        candidate=name,
        loss=None if loss is None else _mapped(loss, lambda y: max(0.0, reference * (1 + y))),
        p_divergence=probability,
        risk=risk,
        recovery_steps=None
        if steps is None
        else _mapped(steps, lambda y: max(0.0, math.expm1(min(y, 20.0)))),
    )


def sigmoid(logit: float) -> float:
    """The probability of a logit, in [0, 1]."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))


def _interval(table: IntervalTable, point: float, spread: float) -> Interval | None:
    if table.quantile is None:
        return None
    half = table.quantile * (spread + table.floor)
    return Interval(point, point - half, point + half)


def _mapped(interval: Interval, rising: Callable[[float], float]) -> Interval:
    return Interval(rising(interval.point), rising(interval.low), rising(interval.high))
