"""Volatility: loss and log gradient norm against their own moving baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forkcast.records import StepStats
from forkcast.robust import Ema, usable
from forkcast_monitor.signals.base import SignalRules


class Volatility:
    """Channels ``loss`` and ``grad_norm``: value minus its EMA before this step."""

    weight = 0.5

    def __init__(self, rules: SignalRules) -> None:
        self._loss, self._norm = Ema(rules.ema_decay), Ema(rules.ema_decay)

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

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._loss.restore(state["loss"])
        self._norm.restore(state["norm"])


def _departure(ema: Ema, value: float) -> float | None:
    if not usable(value):
        return None
    before = ema.value
    ema.push(value)
    return None if before is None else value - before
