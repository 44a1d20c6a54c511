"""What a benchmark hands over: rows, and the quantiles they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ratio: value over the value of the row called ``against``."""

    section: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    note: str = ""


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value with at least ``fraction`` of all at or below it. Raises ValueError."""
    if not values:
        raise ValueError("quantile: no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two. Raises ValueError where there is none."""
    if not values:
        raise ValueError("median: no values")
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def times(count: int, scale: float, least: int = 2) -> int:
    """A number of repetitions, scaled; at least ``least``."""
    return max(least, round(count * scale))
