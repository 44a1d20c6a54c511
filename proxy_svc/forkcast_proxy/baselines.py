"""Trivial forecasts of the loss: what a model must beat to be worth asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from forkcast.records import FloatArray, Window
from forkcast_proxy.features import SPAN, reference_loss

_TRIMMED = 0.03  # of the worst fitting losses, as AutoLRS does before its fit
_RATES = -np.geomspace(1e-4, 0.3, 40)
_POWERS = np.geomspace(0.02, 2.0, 40)


def last_value(window: Window, horizon: int) -> float:  # noqa: ARG001
    """The loss stays where it is: the window's reference, nats/token; NaN where there is none."""
    reference = reference_loss(window)
    return np.nan if reference is None else reference


def exponential(window: Window, horizon: int) -> float:
    """Loss = a exp(b s) + c with b < 0 (AutoLRS, arXiv 2105.10762, section 4.2), s steps into the
    window; least squares in (a, c) for each b of a grid.
    """
    steps, losses = _points(window)
    return _best(steps - steps[0], losses, steps[-1] - steps[0] + horizon, _RATES, _decay)


def power_law(window: Window, horizon: int) -> float:
    """Loss = a (s + 1)^-p + c with p > 0, s steps of the run; least squares in (a, c)."""
    steps, losses = _points(window)
    return _best(steps, losses, steps[-1] + horizon, _POWERS, _power)


def _decay(steps: FloatArray, rate: float) -> FloatArray:
    grown: FloatArray = np.exp(rate * steps)
    return grown


def _power(steps: FloatArray, power: float) -> FloatArray:
    grown: FloatArray = (steps + 1.0) ** -power
    return grown


BASELINES: Mapping[str, Callable[[Window, int], float]] = {
    "last_value": last_value,
    "exponential": exponential,
    "power_law": power_law,
}


def _points(window: Window) -> tuple[FloatArray, FloatArray]:
    """(steps, finite losses) of the last 64 steps; one point of NaN where there is none."""
    steps, losses = window.columns["step"][-SPAN:], window.columns["loss"][-SPAN:]
    usable = np.isfinite(losses) & np.isfinite(steps)
    if not usable.any():
        return np.zeros(1), np.full(1, np.nan)
    return steps[usable], losses[usable]


def _best(
    steps: FloatArray,
    losses: FloatArray,
    target: float,
    grid: FloatArray,
    shape: Callable[[FloatArray, float], FloatArray],
) -> float:
    """The value at ``target`` of the best fitting curve; the mean where a fit is impossible. It is
    held inside [0, twice the largest loss]: a bad fit is not let run away.
    """
    if len(losses) < 8 or not np.isfinite(losses).all():
        return float(losses.mean())
    line = np.polyfit(steps - steps.mean(), losses, 1)
    rest = np.abs(losses - np.polyval(line, steps - steps.mean()))
    kept = rest <= np.quantile(rest, 1 - _TRIMMED)
    x, y = steps[kept], losses[kept]
    best, least = float(y.mean()), np.inf
    for one in grid:
        design = np.stack([shape(x, one), np.ones_like(x)], axis=1)
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        error = float(((design @ solution - y) ** 2).sum())
        if error < least:
            value = shape(np.array([target]), one)[0] * solution[0] + solution[1]
            best, least = float(value), error
    return float(np.clip(best, 0.0, 2.0 * losses.max()))
