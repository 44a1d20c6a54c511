"""The learning rate of a step, before any action's factor."""

from __future__ import annotations

import math
from collections.abc import Sequence

from forkcast_trainer.stressors.base import RateStressor
from forkcast_wire.manifest import Optimizer


def scheduled_rate(
    step: int, optimizer: Optimizer, total_steps: int, stressors: Sequence[RateStressor]
) -> float:
    """Linear warm-up, then cosine to the minimum (SGDR, arXiv 1608.03983, eq. 5) or constant; then
    through the rate stressors. ``step`` counts from 0.
    """
    schedule, peak = optimizer.schedule, optimizer.learning_rate
    if step < schedule.warmup_steps:
        rate = peak * (step + 1) / schedule.warmup_steps
    elif schedule.type == "Constant":
        rate = peak
    else:
        span = max(1, total_steps - schedule.warmup_steps)
        part = min(1.0, (step - schedule.warmup_steps) / span)
        low = schedule.min_learning_rate
        rate = low + 0.5 * (peak - low) * (1 + math.cos(math.pi * part))
    for stressor in stressors:
        rate = stressor.rate(step, rate, peak)
    return rate
