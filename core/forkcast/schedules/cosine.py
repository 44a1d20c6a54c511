"""Cosine: half a wave from the peak to the lowest rate (SGDR, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math

from forkcast.schedules.base import LearningRate, part


class Cosine(LearningRate):
    """rate = low + (peak - low) (1 + cos(pi x)) / 2, x = (step - warmup) / (steps - 1 - warmup)."""

    __slots__ = ()

    def after_warmup(self, step: int, steps: int) -> float:
        """Half a wave, whose last step is the schedule's."""
        way = part(step, self.warmup, steps - 1)
        return self.low + 0.5 * (self.peak - self.low) * (1 + math.cos(math.pi * way))

    def course(self, steps: int) -> str:
        """Where it ends."""
        return f"cosine to {self.low:g} at step {steps - 1:,}"
