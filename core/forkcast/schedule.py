"""The learning rate's schedule: linear warm-up, then cosine (SGDR, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A schedule before any action's factor. Rates are AdamW's.

    warmup: steps of the linear warm-up. steps: length of the schedule, its warm-up included;
    None: constant at the peak after the warm-up.
    """

    peak: float
    low: float
    warmup: int
    steps: int | None

    def at(self, step: int) -> float:
        """The rate of a step; ``step`` counts from 0. The schedule's last step, ``steps - 1``, has
        ``low``, and so has every later one.
        """
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.steps is None:
            return self.peak
        span = self.steps - 1 - self.warmup
        part = 1.0 if step >= self.steps else (step - self.warmup) / span if span > 0 else 0.0
        return self.low + 0.5 * (self.peak - self.low) * (1 + math.cos(math.pi * part))
