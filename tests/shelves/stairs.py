"""A toy schedule: the peak, and from the middle on half of it."""

from __future__ import annotations

from forkcast.schedules.base import LearningRate


class Stairs(LearningRate):
    """One step down."""

    __slots__ = ()

    def after_warmup(self, step: int, steps: int) -> float:
        """The peak or half of it."""
        return self.peak if 2 * step < steps else self.peak / 2

    def course(self, steps: int) -> str:
        """Where it steps down."""
        return f"half from step {steps // 2:,} on"
