"""Forecast disagreement: simple forecasters of the loss, how far apart and how wrong they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from forkcast.level import Level
from forkcast.records import StepStats, TriggerRule
from forkcast.robust import usable
from forkcast_monitor.signals.base import EVENT, LEAST_SIZE, MOST, SignalBase, SignalRules
from forkcast_monitor.signals.forecasts import Forecasts

#: Scales of the loss that the mean forecast was too low by: where it begins to count, and an event.
_ERROR: Final = (2.0, 5.0)


class Disagreement(SignalBase):
    """Three forecasts of the smoothed loss, `SignalRules.horizon` rows ahead. u: how far the loss came out above their
    mean and beyond their spread, in scales of the loss.

    Its weight is 0, which is what it earns on labelled logs beside the other signals (see
    docs/experiments.md); a manifest may give it one.
    """

    weight = 0.0
    rule = TriggerRule.SLOW

    def __init__(self, rules: SignalRules) -> None:
        self._horizon = rules.horizon
        self._forecasts = Forecasts(rules.ema_decay, rules.horizon)
        self._pending: deque[tuple[float, float] | None] = deque(maxlen=rules.horizon)
        self._error = 0.0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """How far off the forecasts were that were made for this row."""
        if not usable(stats.loss):
            self._pending.append(None)  # no forecast was made here; the steps go on
            return None
        self._forecasts.push(stats.loss)
        forecasts = self._forecasts.made_at(stats.step)
        if forecasts is None:
            return None
        due = self._pending[0] if len(self._pending) == self._horizon else None
        spread = max(forecasts) - min(forecasts)
        self._pending.append((sum(forecasts) / len(forecasts), spread))
        if due is None or level.warm:
            return None
        self._error = forecasts[0] - due[0] - due[1]
        begins, event = _ERROR
        scales = self._error / level.scale if self._error > LEAST_SIZE else 0.0
        u = EVENT * (scales - begins) / (event - begins)
        self.healed = u <= 0
        return min(max(u, 0.0), MOST)

    def cause(self) -> str:
        """How far off the forecasts were."""
        return f"the smoothed loss is {self._error:.2f} nats above what {self._horizon} rows ago forecast"

    def splice(self) -> None:
        """What was forecast for another step is no error of this one."""
        self._pending.clear()

    def state(self) -> Mapping[str, object]:
        """Baselines and pending forecasts."""
        return {
            "fast": self._forecasts.fast.state(),
            "slow": self._forecasts.slow.state(),
            "pending": [None if one is None else list(one) for one in self._pending],
            "error": self._error,
            "healed": self.healed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._forecasts.fast.restore(state["fast"])
        self._forecasts.slow.restore(state["slow"])
        pending = [None if one is None else (one[0], one[1]) for one in state["pending"]]
        self._pending = deque(pending, maxlen=self._horizon)
        self._error, self.healed = state["error"], state["healed"]
