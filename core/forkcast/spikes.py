"""The SpikeScore rule: which steps count as instability events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from forkcast.robust import usable

WINDOW = 128
SIGMAS = 6.0
#: Flagged steps closer than this belong to one event.
MERGE_STEPS = 50


class SpikeScore:
    """A step is flagged where its loss or gradient norm exceeds mean + 6 sd of the previous 128
    accepted values (OLMo-core, stability_monitor). Non-finite values are flagged, and flagged
    values do not enter the window, so that one spike does not hide the next.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._need = window
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)
        self.flagged: list[int] = []

    def fold(self, step: int, loss: float, grad_norm: float) -> bool:
        """Fold one step; True if it is flagged."""
        spiked = self._beyond(self._losses, loss) | self._beyond(self._norms, grad_norm)
        if spiked:
            self.flagged.append(step)
        else:
            self._losses.append(loss)
            self._norms.append(grad_norm)
        return spiked

    def _beyond(self, values: deque[float], value: float) -> bool:
        if not usable(value):
            return True
        if len(values) < self._need:
            return False
        mean = math.fsum(values) / len(values)
        above = value - mean
        if above <= 0:
            return False
        spread = max(values) - min(values)
        # the variance is at least range^2 / 2n: most values need no more than that
        if above * above <= SIGMAS * SIGMAS * spread * spread / (2 * len(values)):
            return False
        variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
        return value > mean + SIGMAS * math.sqrt(variance)

    def state(self) -> dict[str, list[float]]:
        """The two windows; the flagged steps are not part of it."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Become what `state` was taken from."""
        self._losses = deque(state["losses"], maxlen=self._need)
        self._norms = deque(state["norms"], maxlen=self._need)


def merge(steps: list[int]) -> list[tuple[int, int]]:
    """Flagged steps as events (first, last), those less than 50 steps apart merged."""
    events: list[tuple[int, int]] = []
    for step in sorted(steps):
        if events and step - events[-1][1] < MERGE_STEPS:
            events[-1] = (events[-1][0], step)
        else:
            events.append((step, step))
    return events
