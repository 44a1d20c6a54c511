"""A curve of any length in bounded memory, for a picture: of each stretch its lowest and highest point."""

from __future__ import annotations

import math
from typing import Final

_MOST_STRETCHES: Final = 2048

Place = tuple[float, float]


class Series:
    """Takes (step, value) with rising steps. Values that are not finite are no part of a curve."""

    def __init__(self) -> None:
        self._stretches: list[tuple[Place, Place]] = []
        self._size = 1
        self._in_last = 0

    def add(self, step: float, value: float) -> None:
        """One more point."""
        if not math.isfinite(value):
            return
        here = (step, value)
        if self._stretches and 0 < self._in_last < self._size:
            low, high = self._stretches[-1]
            self._stretches[-1] = (
                here if value < low[1] else low,
                here if value > high[1] else high,
            )
            self._in_last += 1
            return
        if len(self._stretches) == _MOST_STRETCHES:
            self._halve()
        self._stretches.append((here, here))
        self._in_last = 1

    def points(self) -> list[Place]:
        """What is kept, by step."""
        return [place for pair in self._stretches for place in sorted(set(pair))]

    def cut(self, step: float) -> list[Place]:
        """Take away what lies at or after a step; it is returned."""
        dropped: list[Place] = []
        while self._stretches and max(self._stretches[-1])[0] >= step:
            pair = sorted(set(self._stretches.pop()))
            dropped = [place for place in pair if place[0] >= step] + dropped
            kept = [place for place in pair if place[0] < step]
            if kept:
                self._stretches.append((kept[0], kept[0]))
                break
        self._in_last = self._size  # the next point begins a stretch
        return dropped

    def _halve(self) -> None:
        pairs = self._stretches
        self._stretches = [
            (min(a[0], b[0], key=_value), max(a[1], b[1], key=_value))
            for a, b in zip(pairs[::2], pairs[1::2], strict=True)
        ]
        self._size *= 2


def _value(place: Place) -> float:
    return place[1]
