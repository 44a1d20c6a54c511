"""Aggressive warm-up: a multiple of the peak rate, reached by step 10 and held."""

from __future__ import annotations

from forkcast_trainer.stressors.base import RateStressor

_REACHED_BY = 10
_HELD_TO = 500
_MAGNITUDE = 4.0


class AggressiveWarmup(RateStressor):
    """``magnitude`` (4) times the peak rate, reached by the tenth step from fromStep and held until
    toStep (500 steps). probability: that this seed's run meets it at all, drawn once.
    """

    def rate(self, step: int, scheduled: float, peak: float) -> float:
        """Linear to the multiple over the first ten steps, then held; outside: as scheduled."""
        first, last = self.spec.from_step, self.spec.to_step or self.spec.from_step + _HELD_TO
        if not first <= step < last or not self.chance(0):
            return scheduled
        target = peak * (_MAGNITUDE if self.spec.magnitude is None else self.spec.magnitude)
        return target * min(1.0, (step - first + 1) / _REACHED_BY)
