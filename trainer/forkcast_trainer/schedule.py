"""The learning rate of a step, before any action's factor."""

from __future__ import annotations

from collections.abc import Sequence

from forkcast.schedules import LearningRate
from forkcast_trainer.stressors.base import RateStressor


def scheduled_rate(step: int, schedule: LearningRate, stressors: Sequence[RateStressor]) -> float:
    """The schedule's rate, then through the rate stressors. ``step`` counts from 0."""
    rate = schedule.at(step)
    for stressor in stressors:
        rate = stressor.rate(step, rate, schedule.peak)
    return rate
