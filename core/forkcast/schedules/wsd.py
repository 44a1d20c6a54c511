"""WSD: warm-up, stable, decay (MiniCPM, arXiv 2404.06395), decayed by 1 - sqrt (arXiv 2405.18392).

As long as it is stable, the rate does not depend on the length: such a run is lengthened, or decayed from
any of its states, without a leap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from forkcast.schedules.base import LearningRate, part

#: What is left of the way from the peak to the lowest rate, by how far the decay has come, in [0, 1].
SHAPES: Final[Mapping[str, Callable[[float], float]]] = {
    "OneMinusSqrt": lambda way: 1 - math.sqrt(way),
    "Linear": lambda way: 1 - way,
}
#: Steps of the schedule to one step of the decay: a fifth, with which 1 - sqrt equals a tuned cosine
#: (arXiv 2405.18392, section 3).
_FIFTH: Final = 5


class WarmupStableDecay(LearningRate):
    """rate = low + (peak - low) shape(x), x = (step - s) / d over the last d steps, s = steps - 1 - d
    being the last step at the peak.
    """

    __slots__ = ()
    has_decay: ClassVar[bool] = True

    def after_warmup(self, step: int, steps: int) -> float:
        """The peak, and in the last steps the decay."""
        stable = steps - 1 - self._decay(steps)
        if step <= stable:
            return self.peak
        left = SHAPES[self.decay_shape or "OneMinusSqrt"](part(step, stable, steps - 1))
        return self.low + (self.peak - self.low) * left

    def _decay(self, steps: int) -> int:
        """Steps of the decay; it never reaches into the warm-up."""
        wanted = max(1, steps // _FIFTH) if self.decay_steps is None else self.decay_steps
        return min(wanted, steps - self.warmup)

    def course(self, steps: int) -> str:
        """What is held, and where it ends."""
        decay = self._decay(steps)
        return (
            f"{self.peak:g} to step {steps - 1 - decay:,}, down to {self.low:g} over {decay:,} steps, "
            f"at step {steps - 1:,}"
        )
