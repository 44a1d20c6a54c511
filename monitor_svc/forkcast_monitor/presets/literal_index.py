"""The literal rule's index: scores of all channels to one number, and its z.

u of a signal is the robust z of its value over the last W accepted ones, the current one excluded; a
signal with several channels takes the largest. index = sum(w u) / sum(w) over the signals present, and
z is the index over its own healthy spread: a plain weighted sum of three standard scores has an sd of
about .62, so that its "2.5" would really be 4 sigma.

Values that belong to a departure do not enter the history, or the first row of a spike would hide the
second; a departure that lasts longer than half a window becomes the new normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from forkcast.robust import MAD_TO_SD, RobustWindow, usable

#: z is 0 with fewer accepted rows, however short the warm-up.
_LEAST_ROWS: Final = 16


class LiteralIndex:
    """Folds values row by row. weights: by signal. window: accepted values, W. warmup: no z before so
    many accepted rows. outside: values stay out of the history while z is above it.
    """

    def __init__(
        self, weights: Mapping[str, float], window: int, warmup: int, outside: float
    ) -> None:
        self._weights, self._window = weights, window
        self._warmup, self._outside_z = warmup, outside
        self._channels: dict[str, RobustWindow] = {}
        self._held: dict[str, float] = {}
        self._history = RobustWindow(window)
        self._accepted = self._outside = 0

    def fold(self, measured: Mapping[str, Mapping[str, float | None]]) -> float:
        """The z of a row. measured: signal -> channel -> value; None = not measured now, the channel's last
        u holds; a signal never seen is absent from the index.
        """
        fresh: list[tuple[str, float]] = []
        total, weighted = [], []
        for signal, channels in measured.items():
            scores = [
                score
                for name, value in channels.items()
                if (score := self._score(f"{signal}.{name}", value, fresh)) is not None
            ]
            if scores:
                weight = self._weights[signal]
                total.append(weight)
                weighted.append(weight * max(scores))
        index = math.fsum(weighted) / math.fsum(total) if total else 0.0
        ready = self._accepted >= self._warmup and len(self._history) >= _LEAST_ROWS
        z = self._z(index) if ready else 0.0
        self._accept(index, z, fresh)
        return z

    def _score(
        self, channel: str, value: float | None, fresh: list[tuple[str, float]]
    ) -> float | None:
        if value is None or not usable(value):
            return self._held.get(channel)
        window = self._channels.get(channel)
        if window is None:
            window = self._channels[channel] = RobustWindow(self._window)
        score = self._held[channel] = window.z(value)
        fresh.append((channel, value))
        return score

    def _z(self, index: float) -> float:
        center = self._history.median()
        spread = MAD_TO_SD * self._history.deviation(center)
        return (index - center) / spread if spread > 1e-9 else 0.0

    def _accept(self, index: float, z: float, fresh: list[tuple[str, float]]) -> None:
        """Values inside enter the history; after half a window outside, so do those outside."""
        self._outside = self._outside + 1 if z > self._outside_z else 0
        if 0 < self._outside <= self._window // 2:
            return
        for channel, value in fresh:
            self._channels[channel].push(value)
        self._history.push(index)
        self._accepted += 1

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "channels": {name: window.state() for name, window in self._channels.items()},
            "held": dict(self._held),
            "history": self._history.state(),
            "accepted": self._accepted,
            "outside": self._outside,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        size = self._window
        self._channels = {n: RobustWindow(size, v) for n, v in state["channels"].items()}
        self._held = {name: float(u) for name, u in state["held"].items()}
        self._history = RobustWindow(size, state["history"])
        self._accepted, self._outside = int(state["accepted"]), int(state["outside"])
