"""What the literal rule measures: each against a moving average of its own, by signal and channel.

A value of None was not measured at that row; its channel keeps its last score.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from forkcast.records import StepStats
from forkcast.robust import Ema, usable
from forkcast_monitor.signals.base import SignalRules
from forkcast_monitor.signals.forecasts import Forecasts

Channels = dict[str, float | None]


class Volatility:
    """Channels ``loss`` and ``grad_norm``: value minus its EMA before this row, nats/token and log units."""

    def __init__(self, rules: SignalRules) -> None:
        self._loss, self._norm = Ema(rules.ema_decay), Ema(rules.ema_decay)

    def update(self, stats: StepStats) -> Channels:
        """Departures of this row."""
        # a norm of exactly 0 is one that nobody measured: its logarithm says nothing
        norm = _log(stats.grad_norm)
        return {
            "loss": _departure(self._loss, stats.loss),
            "grad_norm": _departure(self._norm, norm),
        }

    def state(self) -> Mapping[str, object]:
        """The two averages."""
        return {"loss": self._loss.state(), "norm": self._norm.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._loss.restore(state["loss"])
        self._norm.restore(state["norm"])


class InternalEntropy:
    """Channels, sampled every few rows: ``collapse`` = fall of the lowest layer's normalised attention
    entropy, ``logit`` = rise of the log of the largest attention logit, ``width`` = rise of the log of
    the largest activation sd. The decay of their averages is per step of the run, however many lie
    between two samples.
    """

    def __init__(self, rules: SignalRules) -> None:
        self._averages = {name: Ema(rules.ema_decay) for name in ("collapse", "logit", "width")}
        self._sampled: dict[str, int] = {}  # by channel, the step of the last sample

    def update(self, stats: StepStats) -> Channels:
        """Departures of this row; None if nothing was sampled."""
        values: Channels = dict.fromkeys(self._averages)
        if stats.attention_entropy:
            values["collapse"] = -min(stats.attention_entropy)
        if stats.attention_logit_max is not None:
            values["logit"] = _log(abs(stats.attention_logit_max))
        if stats.activation_sd:
            values["width"] = _log(max(stats.activation_sd))
        return {name: self._departed(name, value, stats.step) for name, value in values.items()}

    def _departed(self, name: str, value: float | None, step: int) -> float | None:
        steps = step - self._sampled.get(name, step - 1)
        departure = _departure(self._averages[name], value, max(1, steps))
        if value is not None and usable(value):
            self._sampled[name] = step
        return departure

    def state(self) -> Mapping[str, object]:
        """The averages, and when they were last sampled."""
        averages = {name: average.state() for name, average in self._averages.items()}
        return {"averages": averages, "sampled": dict(self._sampled)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for name, average in self._averages.items():
            average.restore(state["averages"][name])
        self._sampled = {name: int(step) for name, step in state["sampled"].items()}


class Disagreement:
    """Three forecasts of the smoothed loss, ``horizon`` rows ahead. Channels: ``spread`` of the three now, and
    ``error`` of the mean forecast that was made for this row; nats/token.
    """

    def __init__(self, rules: SignalRules) -> None:
        self._horizon = rules.horizon
        self._forecasts = Forecasts(rules.ema_decay, rules.horizon)
        self._pending: deque[float | None] = deque(maxlen=rules.horizon)
        self._step: int | None = None

    def update(self, stats: StepStats) -> Channels:
        """Spread and error of this row."""
        if self._step is not None and stats.step != self._step + 1:
            self._pending.clear()  # what was forecast for another step is no error of this one
        self._step = stats.step
        if usable(stats.loss):
            self._forecasts.push(stats.loss)
        forecasts = self._forecasts.made_at(stats.step)
        if not usable(stats.loss) or forecasts is None:
            self._pending.append(None)  # no forecast was made here; the steps go on
            return {"spread": None, "error": None}
        due = self._pending[0] if len(self._pending) == self._horizon else None
        self._pending.append(sum(forecasts) / len(forecasts))
        return {
            "spread": max(forecasts) - min(forecasts),
            "error": None if due is None else forecasts[0] - due,
        }

    def state(self) -> Mapping[str, object]:
        """The averages and the pending forecasts."""
        return {
            "fast": self._forecasts.fast.state(),
            "slow": self._forecasts.slow.state(),
            "pending": list(self._pending),
            "step": self._step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._forecasts.fast.restore(state["fast"])
        self._forecasts.slow.restore(state["slow"])
        self._pending = deque(state["pending"], maxlen=self._horizon)
        self._step = state["step"]


def _departure(average: Ema, value: float | None, steps: int = 1) -> float | None:
    """The value minus the average before it; None if nothing was measured, or nothing before."""
    if value is None or not usable(value):
        return None
    before = average.value
    average.push(value, steps)
    return None if before is None else value - before


def _log(value: float) -> float | None:
    """The logarithm of a positive finite value, else None: not measured."""
    return math.log(value) if usable(value) and value > 0 else None
