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
    """Three forecasts of the smoothed loss, ``horizon`` rows ahead: the last value, a line through two
    averages of different span, the same line in log t. Channels: ``spread`` of the three now, and
    ``error`` of the mean forecast that was made for this row; nats/token.
    """

    def __init__(self, rules: SignalRules) -> None:
        decay = self._decay = rules.ema_decay
        self._horizon = rules.horizon
        self._fast, self._slow = Ema(decay), Ema(1 - (1 - decay) / 4)
        self._pending: deque[float | None] = deque(maxlen=rules.horizon)
        self._step: int | None = None

    def update(self, stats: StepStats) -> Channels:
        """Spread and error of this row."""
        if self._step is not None and stats.step != self._step + 1:
            self._pending.clear()  # what was forecast for another step is no error of this one
        self._step = stats.step
        if usable(stats.loss):
            self._fast.push(stats.loss)
            self._slow.push(stats.loss)
        fast, slow = self._fast.value, self._slow.value
        if not usable(stats.loss) or fast is None or slow is None:
            self._pending.append(None)  # no forecast was made here; the steps go on
            return {"spread": None, "error": None}
        due = self._pending[0] if len(self._pending) == self._horizon else None
        lag = 3.0 / (1 - self._decay)  # mean ages of the two averages differ by this many rows
        slope = (fast - slow) / lag
        t = stats.step + 1.0
        forecasts = (
            fast,
            fast + slope * self._horizon,
            fast + slope * t * math.log((t + self._horizon) / t),
        )
        self._pending.append(sum(forecasts) / len(forecasts))
        return {
            "spread": max(forecasts) - min(forecasts),
            "error": None if due is None else fast - due,
        }

    def state(self) -> Mapping[str, object]:
        """The averages and the pending forecasts."""
        return {
            "fast": self._fast.state(),
            "slow": self._slow.state(),
            "pending": list(self._pending),
            "step": self._step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._fast.restore(state["fast"])
        self._slow.restore(state["slow"])
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
