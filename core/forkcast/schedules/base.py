"""What a schedule is: the learning rate by step, a pure function of the manifest's numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate(ABC):
    """A linear warm-up, then the schedule's own course; before any action's factor.

    peak, low: rates. warmup: steps of the warm-up, the last of which has the peak. steps: length of the
    schedule, its warm-up included, so that its last step is ``steps - 1``; None: it has no length.
    decay_steps, decay_shape: of a decay at the end; None: the schedule's default.
    """

    #: Whether the course ends at a step, after which the rate stays at ``low``.
    has_length: ClassVar[bool] = True
    #: Whether a manifest may say how long the decay at the end is, and of which shape.
    has_decay: ClassVar[bool] = False

    peak: float
    low: float
    warmup: int
    steps: int | None
    decay_steps: int | None = None
    decay_shape: str | None = None

    def at(self, step: int) -> float:
        """The rate of a step; ``step`` counts from 0. The last step has ``low``, and so has every
        later one.
        """
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.steps is None:
            return self.peak
        return self.low if step >= self.steps else self.after_warmup(step, self.steps)

    @abstractmethod
    def after_warmup(self, step: int, steps: int) -> float:
        """The rate at a step in [warmup, steps)."""

    @abstractmethod
    def course(self, steps: int) -> str:
        """What comes after the warm-up of a schedule of so many steps, in words."""


def part(step: int, first: int, last: int) -> float:
    """How far a step is on the way from ``first`` (0) to ``last`` (1); 0 if there is no way."""
    return (step - first) / (last - first) if last > first else 0.0
