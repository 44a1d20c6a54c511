"""Constant: the peak, for as long as the run goes on."""

from __future__ import annotations

from typing import ClassVar

from forkcast.schedules.base import LearningRate


class Constant(LearningRate):
    """It has no length, and so no last step."""

    __slots__ = ()
    has_length: ClassVar[bool] = False

    def after_warmup(self, step: int, steps: int) -> float:  # noqa: ARG002
        """The peak."""
        return self.peak

    def course(self, steps: int) -> str:  # noqa: ARG002
        """The peak."""
        return f"then {self.peak:g}"
