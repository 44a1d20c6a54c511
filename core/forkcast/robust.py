"""Robust location and scale over a sliding window, exact and bit-reproducible."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

#: 1 / Phi^-1(3/4): makes the median absolute deviation an sd for normal data.
MAD_TO_SD = 1.4826
#: Beyond this a float is on its way to overflow: no loss, norm or logit is that large.
_ABSURD = 1e100


def usable(value: float) -> bool:
    """Whether a measurement may enter a baseline: finite, and not about to overflow."""
    return -_ABSURD < value < _ABSURD


class RobustWindow:
    """The last ``size`` values, kept sorted; median and MAD without sorting again."""

    def __init__(self, size: int, values: Sequence[float] = ()) -> None:
        self.size = size
        self._order: deque[float] = deque(values, maxlen=size)
        self._sorted = sorted(self._order)
        self._below = 0  # where `deviation` begins to look: its last answer; no part of the state

    def __len__(self) -> int:
        return len(self._order)

    def push(self, value: float) -> None:
        """Add a finite value; the oldest leaves a full window."""
        order, values = self._order, self._sorted
        if len(order) == self.size:
            del values[bisect_left(values, order[0])]
        order.append(value)
        insort(values, value)

    def z(self, value: float) -> float:
        """(value - median) / (1.4826 MAD), 0 for a constant series and for fewer than 8 values;
        clipped to +-1e3.
        """
        if len(self._sorted) < 8 or not math.isfinite(value):
            return 0.0
        center = self.median()
        spread = MAD_TO_SD * self.deviation(center)
        if spread <= 1e-12 or spread <= 1e-12 * abs(center):
            return 0.0
        z = (value - center) / spread
        return z if -1e3 < z < 1e3 else math.copysign(1e3, z)

    def median(self) -> float:
        """Median of the window, 0 where it is empty."""
        n = len(self._sorted)
        if not n:
            return 0.0
        middle = n // 2
        if n % 2:
            return self._sorted[middle]
        return 0.5 * self._sorted[middle - 1] + 0.5 * self._sorted[middle]

    def deviation(self, center: float) -> float:
        """Median absolute deviation from ``center``: the distances below and above it are two sorted
        runs already, and how many of the nearest lie below hardly changes from step to step, so the
        search walks there from its last answer.
        """
        values, n = self._sorted, len(self._sorted)
        if not n:
            return 0.0
        right = bisect_left(values, center)
        nearest = n // 2 + 1
        last = right + nearest
        least, most = last - n if last > n else 0, min(right, nearest)
        low = self._below
        low = least if low < least else min(low, most)
        # the fewest below such that the next below is no nearer than the last above
        while low < most and center - values[right - 1 - low] < values[last - 1 - low] - center:
            low += 1
        while low > least and center - values[right - low] >= values[last - low] - center:
            low -= 1
        self._below = low
        above = nearest - low
        from_below = center - values[right - low] if low else -math.inf
        from_above = values[right + above - 1] - center if above else -math.inf
        if n % 2:
            return max(from_below, from_above)
        if from_below > from_above:
            second = center - values[right - low + 1] if low > 1 else -math.inf
            return 0.5 * from_below + 0.5 * max(second, from_above)
        second = values[right + above - 2] - center if above > 1 else -math.inf
        return 0.5 * from_above + 0.5 * max(second, from_below)

    def state(self) -> list[float]:
        """The values, oldest first."""
        return list(self._order)


class Ema:
    """A bias-corrected exponential moving average; the baseline, not a smoother of the index."""

    def __init__(self, decay: float, total: float = 0.0, weight: float = 0.0) -> None:
        self.decay, self.total, self.weight = decay, total, weight

    @property
    def value(self) -> float | None:
        """None before the first value."""
        return self.total / self.weight if self.weight else None

    def push(self, value: float, steps: int = 1) -> None:
        """Fold a finite value; steps: since the value before, >= 1, so that the baseline spans the
        same number of steps however often it is sampled.
        """
        decay = self.decay if steps == 1 else self.decay**steps
        self.total = decay * self.total + (1 - decay) * value
        self.weight = decay * self.weight + (1 - decay)

    def state(self) -> list[float]:
        """[total, weight]."""
        return [self.total, self.weight]

    def restore(self, state: Sequence[float]) -> None:
        """Become what `state` was taken from."""
        self.total, self.weight = map(float, state)
