"""Simple forecasts of the smoothed loss, from two averages of it of different span."""

from __future__ import annotations

import math

from forkcast.robust import Ema


class Forecasts:
    """Three forecasts, ``horizon`` rows ahead: the last value, a line through the two averages, the same
    line in log t; nats/token. decay: of the faster average, per row; the slower spans four times as many.
    """

    def __init__(self, decay: float, horizon: int) -> None:
        self.fast, self.slow = Ema(decay), Ema(1 - (1 - decay) / 4)
        self._decay, self._horizon = decay, horizon

    def push(self, loss: float) -> None:
        """Fold a finite loss."""
        self.fast.push(loss)
        self.slow.push(loss)

    def made_at(self, step: int) -> tuple[float, float, float] | None:
        """Those made at ``step``; None before the first loss."""
        fast, slow = self.fast.value, self.slow.value
        if fast is None or slow is None:
            return None
        lag = 3.0 / (1 - self._decay)  # mean ages of the two averages differ by this many rows
        slope, t = (fast - slow) / lag, step + 1.0
        return (
            fast,
            fast + slope * self._horizon,
            fast + slope * t * math.log((t + self._horizon) / t),
        )
