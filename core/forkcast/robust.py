"""Robust location and scale over a sliding window, exact and bit-reproducible."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

#: 1 / Phi^-1(3/4): makes the median absolute deviation an sd for normal data.
MAD_TO_SD = 1.4826


class RobustWindow:
    """The last ``size`` values, kept sorted; median and MAD without sorting again."""

    def __init__(self, size: int, values: Sequence[float] = ()) -> None:
        self.size = size
        self._order: deque[float] = deque(values, maxlen=size)
        self._sorted = sorted(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def push(self, value: float) -> None:
        """Add a finite value; the oldest leaves a full window."""
        if len(self._order) == self.size:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(value)
        insort(self._sorted, value)

    def z(self, value: float) -> float:
        """(value - median) / (1.4826 MAD), 0 for a constant series and for fewer than 8 values;
        clipped to +-1e3.
        """
        if len(self._sorted) < 8 or not math.isfinite(value):
            return 0.0
        center = self.median()
        spread = MAD_TO_SD * self.deviation(center)
        if spread <= 1e-12 * max(1.0, abs(center)):
            return 0.0
        return max(-1e3, min(1e3, (value - center) / spread))

    def median(self) -> float:
        """Median of the window, 0 where it is empty."""
        n = len(self._sorted)
        if not n:
            return 0.0
        middle = n // 2
        if n % 2:
            return self._sorted[middle]
        return 0.5 * (self._sorted[middle - 1] + self._sorted[middle])

    def deviation(self, center: float) -> float:
        """Median absolute deviation by merging the two sorted halves around the center, O(n/2)."""
        values, n = self._sorted, len(self._sorted)
        right = bisect_left(values, center)
        left = right - 1
        wanted = n // 2
        previous = current = 0.0
        for _ in range(wanted + 1):
            below = center - values[left] if left >= 0 else math.inf
            above = values[right] - center if right < n else math.inf
            previous = current
            if below <= above:
                current, left = below, left - 1
            else:
                current, right = above, right + 1
        return current if n % 2 else 0.5 * (previous + current)

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

    def push(self, value: float) -> None:
        """Fold a finite value."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    def state(self) -> list[float]:
        """[total, weight]."""
        return [self.total, self.weight]
