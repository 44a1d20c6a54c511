"""Volatility: loss and log gradient norm against their own moving baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping

from forkcast.records import StepStats
from forkcast.robust import Ema, usable


class Volatility:
    """Channels ``loss`` and ``grad_norm``: value minus its EMA before this step."""

    def __init__(self, decay: float, horizon: int) -> None:
        del horizon
        self._loss, self._norm = Ema(decay), Ema(decay)

    def update(self, stats: StepStats) -> Mapping[str, float | None]:
        """Departures of this step, nats/token and log units."""
        # a norm of exactly 0 is one that nobody measured: its logarithm says nothing
        measured = usable(stats.grad_norm) and stats.grad_norm > 0
        norm = math.log(stats.grad_norm) if measured else math.nan
        return {
            "loss": _departure(self._loss, stats.loss),
            "grad_norm": _departure(self._norm, norm),
        }

    def state(self) -> Mapping[str, object]:
        """The two baselines."""
        return {"loss": self._loss.state(), "norm": self._norm.state()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore them."""
        for ema, name in ((self._loss, "loss"), (self._norm, "norm")):
            ema.total, ema.weight = state[name]  # type: ignore[misc]


def _departure(ema: Ema, value: float) -> float | None:
    if not usable(value):
        return None
    before = ema.value
    ema.push(value)
    return None if before is None else value - before
