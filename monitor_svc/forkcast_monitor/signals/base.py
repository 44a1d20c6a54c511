"""What every signal is made with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRules:
    """ema_decay: of the moving baselines per step, in [0, 1). horizon: of forecasts, steps, >= 1."""

    ema_decay: float = 0.98
    horizon: int = 50
