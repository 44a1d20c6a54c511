"""Linear: a straight line from the peak to the lowest rate (to 0: arXiv 2502.15938)."""

from __future__ import annotations

from forkcast.schedules.base import LearningRate, part


class Linear(LearningRate):
    """rate = low + (peak - low) (1 - x), x = (step - warmup) / (steps - 1 - warmup)."""

    __slots__ = ()

    def after_warmup(self, step: int, steps: int) -> float:
        """The line, whose last step is the schedule's."""
        return self.low + (self.peak - self.low) * (1 - part(step, self.warmup, steps - 1))

    def course(self, steps: int) -> str:
        """Where it ends."""
        return f"linear to {self.low:g} at step {steps - 1:,}"
