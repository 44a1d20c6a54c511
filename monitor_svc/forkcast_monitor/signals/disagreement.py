"""Forecast disagreement: simple forecasters of the loss, how far apart and how wrong they are."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from forkcast.records import StepStats
from forkcast.robust import Ema, usable
from forkcast_monitor.signals.base import SignalRules


class Disagreement:
    """Three forecasts of the smoothed loss, `SignalRules.horizon` steps ahead: the last value, a line through
    two baselines of different span, the same line in log t. Channels: ``spread`` of the three now,
    and ``error`` of the mean forecast that was made for this step.
    """

    weight = 0.2

    def __init__(self, rules: SignalRules) -> None:
        decay = self._decay = rules.ema_decay
        self._horizon = rules.horizon
        self._fast, self._slow = Ema(decay), Ema(1 - (1 - decay) / 4)
        self._pending: deque[float | None] = deque(maxlen=rules.horizon)
        self._step: int | None = None

    def update(self, stats: StepStats) -> Mapping[str, float | None]:
        """Spread and error of this step, nats/token."""
        if self._step is not None and stats.step != self._step + 1:
            self._pending.clear()  # what was forecast for another step is no error of this one
        self._step = stats.step
        if not usable(stats.loss):
            self._pending.append(None)  # no forecast was made here; the steps go on
            return {"spread": None, "error": None}
        self._fast.push(stats.loss)
        self._slow.push(stats.loss)
        fast, slow = self._fast.value, self._slow.value
        if fast is None or slow is None:
            return {"spread": None, "error": None}
        due = self._pending[0] if len(self._pending) == self._horizon else None
        lag = 3.0 / (1 - self._decay)  # mean ages of the two baselines differ by this many steps
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
        """Baselines and pending forecasts."""
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
