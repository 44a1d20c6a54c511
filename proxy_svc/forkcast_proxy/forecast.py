"""A checked model's numbers to forecasts with bounds; abstains wherever the card says it must."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from forkcast.decision import Candidate
from forkcast.records import Forecast, Interval, Window
from forkcast_proxy.card import OUTPUTS, Card, IntervalTable
from forkcast_proxy.features import FEATURE_NAMES, FloatMatrix, features, reference_loss
from forkcast_proxy.heuristic import abstain, abstained
from forkcast_proxy.session import Model


def forecast(
    model: Model, window: Window, candidates: Sequence[Candidate], horizon: int
) -> tuple[list[Forecast], str]:
    """(one forecast a candidate, in order; a note on what was withheld, or "")."""
    card = model.card
    least, most = card.horizons
    if not least <= horizon <= most:
        reason = f"the model forecasts {least} to {most} steps ahead, asked were {horizon}"
        return abstain(candidates, reason), reason
    reference = reference_loss(window)
    if reference is None:
        reason = "the window holds no finite loss"
        return abstain(candidates, reason), reason
    withheld = [name for name in OUTPUTS if card.no_better_than_baseline[name]]
    if len(withheld) == len(OUTPUTS):
        reason = "the model is no better than a trivial forecast in anything"
        return abstain(candidates, reason), reason
    matrix = features(window, [one.action for one in candidates], horizon)
    strange = outside(card, matrix)
    means, spreads = model.run(matrix) if len(candidates) else (matrix, matrix)
    answers = [
        abstained(one.name, f"out of distribution: {odd}")
        if odd is not None
        else _one(card, one.name, reference, mean, spread)
        for one, odd, mean, spread in zip(
            candidates, strange, means.astype(float), spreads.astype(float), strict=True
        )
    ]
    note = f"withheld, no better than a baseline: {', '.join(withheld)}" if withheld else ""
    return answers, note


def outside(card: Card, matrix: FloatMatrix) -> list[str | None]:
    """For each row the first feature that lies outside the card's range, None where none does."""
    low, high = np.array(card.feature_low), np.array(card.feature_high)
    wrong = (matrix < low - 1e-5) | (matrix > high + 1e-5)
    return [FEATURE_NAMES[int(np.argmax(row))] if row.any() else None for row in wrong]


def _one(card: Card, name: str, reference: float, mean: np.ndarray, spread: np.ndarray) -> Forecast:
    if not (np.isfinite(mean).all() and np.isfinite(spread).all()):
        return abstained(name, "the model gave a non-finite number")
    skip = card.no_better_than_baseline
    loss = None if skip["loss"] else _interval(card.loss, mean[0], spread[0])
    steps = None if skip["recovery"] else _interval(card.recovery, mean[2], spread[2])
    probability, risk = None, None
    if not skip["divergence"]:
        low, high = card.risk.bounds(p := sigmoid(mean[1]))
        probability, risk = Interval(min(max(p, low), high), low, high), high
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
