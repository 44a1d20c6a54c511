"""Volatility: a loss that departs from its level over several rows, and a gradient norm that says why.

One row tells nothing: of the losses that stand alone, 99 in 100 are the batch. So deviations are
summed (CUSUM, Page 1954), each clipped to [-3, 2.5] scales and less one: C rises by at most 1.5 a row,
which makes the tail of a batch's mean and of one rank's loss nearly the same, and returns to 0 between
two departures. The gradient norm votes: if it doubled when C left 0, the state of the run is concerned;
if it did not move, it is the data, and the sum is held below what makes an event, unless it is severe and
lasts: then it is told, and never asks for a branch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from forkcast.level import Level
from forkcast.records import StepStats
from forkcast_monitor.signals.base import EVENT, LEAST_SIZE, MOST, SignalBase, SignalRules

_DRIFT = 1.0
_CAP = 8.0
#: C of an event: four rows at the clip beside a norm that doubled; five where no norm is logged.
_VOTED = 4.5
_ALONE = 7.45
#: What a departure without a vote comes to at most: seen, never an event.
_UNVOTED_MOST = 2.4
#: But one that is severe, and so long that the sum is at its cap, is an event: other data, or a fault of them.
_LASTS = 1.05 * EVENT
_VOTE = math.log(2)
#: The norm may have led the loss by so many rows.
_LEAD = 4
_SEVERE_SCALES, _SEVERE_SIZE = 8.0, 0.3


class Volatility(SignalBase):
    """u = 3.2 at C = 4.5 with the norm's vote, at 7.45 if no norm is logged."""

    weight = 0.5
    patient = True

    def __init__(self, rules: SignalRules) -> None:
        del rules  # the level has the decay
        self._sum = 0.0
        self._rows = 0  # since the sum left 0
        self._ref = math.nan
        self._ref_scale = 0.0
        self._led: deque[float] = deque(maxlen=_LEAD)  # the norm's rises before the sum left 0
        self._vote: float | None = None
        self._size = 0.0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """The sum in the unit of an event."""
        del stats  # all that counts of it is in the level
        if not level.finite:
            return None
        rise = level.norm_rise
        if level.warm:
            if rise is not None:
                self._led.append(rise)
            self._sum, self._rows, self.severe, self.healed = 0.0, 0, False, True
            self._ref = level.cover
            return 0.0
        z = level.z
        z = -3.0 if z < -3.0 else 2.5 if z > 2.5 else z
        total = self._sum + z - _DRIFT
        if total <= 0:
            self._sum, self._rows = 0.0, 0
            self._ref, self._ref_scale = level.cover, level.scale
            self.severe, self.healed = False, True
            if rise is not None:
                self._led.append(rise)
            return 0.0
        return self._departed(total if total < _CAP else _CAP, rise, level)

    def _departed(self, total: float, rise: float | None, level: Level) -> float:
        if not self._rows:
            self._vote = max(self._led, default=None)
        self._rows += 1
        self._sum = total
        if rise is not None and (self._vote is None or rise > self._vote):
            self._vote = rise
        size = self._size = level.recent - self._ref
        scale = self._ref_scale
        far = size > _SEVERE_SCALES * scale and size > _SEVERE_SIZE
        voted = self._vote is None or self._vote >= _VOTE
        # what is the batch's is no state to go back from
        self.severe, self.healed = far and voted, size <= scale or not voted
        if far and not voted and total == _CAP and not level.rate_rose:
            return _LASTS
        u = EVENT * total / (_ALONE if self._vote is None else _VOTED)
        unvoted = EVENT * total / _ALONE
        if size <= LEAST_SIZE or not voted or (level.rate_rose and not self.severe):
            return unvoted if unvoted < _UNVOTED_MOST else _UNVOTED_MOST
        return u if u < MOST else MOST

    def cause(self) -> str:
        """Size, rows, and what the gradient norm says."""
        rows = f"{self._rows} row{'s' * (self._rows > 1)}"
        said = f"loss {self._size:+.2f} nats over {rows}"
        if self._vote is None:
            return f"{said}, no gradient norm is logged"
        if self._vote >= _VOTE:
            return f"{said}, gradient norm x{math.exp(min(self._vote, 50)):.1f}: this is the state of the run"
        return f"{said}, gradient norm unchanged: this is the batch"

    def splice(self) -> None:
        """The sum begins anew."""
        self._sum, self._rows, self._vote = 0.0, 0, None
        self.severe, self.healed = False, True

    def state(self) -> Mapping[str, object]:
        """The sum, what it is measured from, and the vote."""
        return {
            "sum": [self._sum, self._rows, self._size],
            "ref": [None if math.isnan(self._ref) else self._ref, self._ref_scale],
            "led": list(self._led),
            "vote": self._vote,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._sum, self._rows, self._size = state["sum"]
        ref, self._ref_scale = state["ref"]
        self._ref = math.nan if ref is None else ref
        self._led = deque(state["led"], maxlen=_LEAD)
        self._vote = state["vote"]
        scale = self._ref_scale
        voted = self._vote is None or self._vote >= _VOTE
        self.severe = bool(
            self._rows
            and voted
            and self._size > _SEVERE_SCALES * scale
            and self._size > _SEVERE_SIZE
        )
        self.healed = not self._rows or self._size <= scale or not voted
