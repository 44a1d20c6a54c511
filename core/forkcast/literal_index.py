"""Raw signal values to one index and its z.

u_i is the robust z of signal i over the last W accepted values, the current one excluded; a signal
with several channels takes the largest. index = sum(w_i u_i) / sum(w_i) over the signals present,
and z is the index over its own healthy spread: a plain weighted sum of three standard scores has
an sd of about .62, so that its "2.5" would really be 4 sigma.

Values that belong to a departure do not enter the history, or the first step of a spike would hide
the second; a departure that lasts longer than half a window becomes the new normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkcast.records import Index
from forkcast.robust import MAD_TO_SD, RobustWindow, usable


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRules:
    """weights: by signal, of all signals. window: accepted values, W. warmup_steps: no z before so many steps.
    outside_z: a step's values stay out of the history while the index stands above this z.
    """

    weights: Mapping[str, float]
    window: int = 512
    warmup_steps: int = 200
    outside_z: float = 2.5

    def __post_init__(self) -> None:
        if self.window < 16 or not all(w >= 0 for w in self.weights.values()):
            raise ValueError(f"index: window >= 16 and weights >= 0 needed; got {self}")
        if not abs(math.fsum(self.weights.values()) - 1) <= 1e-6:
            raise ValueError(f"index: weights must sum to 1; got {dict(self.weights)}")


class UncertaintyIndex:
    """Folds raw channel values step by step. Its state restores bit-equal."""

    def __init__(self, rules: IndexRules) -> None:
        self.rules = rules
        self._channels: dict[str, RobustWindow] = {}
        self._held: dict[str, float] = {}
        self._history = RobustWindow(rules.window)
        self._accepted = 0
        self._outside = 0

    def fold(self, step: int, epoch: int, raw: Mapping[str, Mapping[str, float | None]]) -> Index:
        """Fold one step's raw values: signal -> channel -> value (None = not sampled now, the
        channel's last u holds; a signal never seen is absent from the index).
        """
        fresh: list[tuple[str, float]] = []
        components: dict[str, float] = {}
        for signal, channels in raw.items():
            scores = [
                score
                for name, value in channels.items()
                if (score := self._score(f"{signal}.{name}", value, fresh)) is not None
            ]
            if scores:
                components[signal] = max(scores)
        weights = {name: self.rules.weights[name] for name in components}
        total = math.fsum(weights.values())
        index = (
            math.fsum(weights[name] * u for name, u in components.items()) / total if total else 0.0
        )
        ready = self._accepted >= self.rules.warmup_steps and len(self._history) >= 16
        z = self._z(index) if ready else 0.0
        self._accept(index, z, fresh)
        return Index(step=step, epoch=epoch, components=components, index=index, z=z, ready=ready)

    def _score(
        self, channel: str, value: float | None, fresh: list[tuple[str, float]]
    ) -> float | None:
        if value is None or not usable(value):
            return self._held.get(channel)
        window = self._channels.get(channel)
        if window is None:
            window = self._channels[channel] = RobustWindow(self.rules.window)
        score = self._held[channel] = window.z(value)
        fresh.append((channel, value))
        return score

    def _z(self, index: float) -> float:
        center = self._history.median()
        spread = MAD_TO_SD * self._history.deviation(center)
        return (index - center) / spread if spread > 1e-9 else 0.0

    def _accept(self, index: float, z: float, fresh: list[tuple[str, float]]) -> None:
        """Values inside enter the history; after half a window outside, so do those outside."""
        self._outside = self._outside + 1 if z > self.rules.outside_z else 0
        if 0 < self._outside <= self.rules.window // 2:
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
        size = self.rules.window
        self._channels = {n: RobustWindow(size, v) for n, v in state["channels"].items()}
        self._held = {name: float(u) for name, u in state["held"].items()}
        self._history = RobustWindow(size, state["history"])
        self._accepted, self._outside = int(state["accepted"]), int(state["outside"])
