"""Drift: a loss that creeps away from its best, a gradient norm that creeps away from its least.

No row of a slow divergence stands out, so nothing that looks at rows sees it. The loss's own moving
average is compared with the best it has been; what was best is forgotten by a quarter of a scale in a
window, so that a run whose data get harder is not held to its easiest thousand steps.

Harder data look the same at first, but they stop: the loss stands a few scales higher, the norm as
before, and the loss falls again. So a loss that has crept is an event, and asks for a branch only when
it is the state of the run for sure: the norm has risen, too, or the loss goes on to where no data
took a healthy run. (The third witness is a validation loss; see `forkcast.regressions`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forkcast.level import Level
from forkcast.records import StepStats, TriggerRule
from forkcast_monitor.signals.base import EVENT, LEAST_SIZE, MOST, SignalBase, SignalRules

#: Scales above the best, and log units above the least norm: where it begins to count, and how much more
#: makes an event.
_LOSS = (1.5, 1.5)
_NORM = (0.35, 0.35)
#: A loss this far above its best is no matter of the data: scales, nats/token.
_FAR_SCALES, _FAR_SIZE = 5.25, 0.3
#: Residuals of the average are clipped at so many scales, so that a spike does not move it far.
_CLIP = 4.0
_FORGET_SCALES = 0.25
_NORM_FORGET = 0.0005


class Drift(SignalBase):
    """u = 3.2 at 3 scales of the loss above its best, or at a norm twice its least (.7 log units). severe,
    and not healed: while it is the state of the run.
    """

    weight = 0.2
    rule = TriggerRule.SLOW
    #: What may be the data's never asks for a branch because it lasts.
    patient = True

    def __init__(self, rules: SignalRules) -> None:
        self._gain = 1 - rules.ema_decay
        self._forget = _FORGET_SCALES / rules.window
        self._rows = 0
        self._mean = self._best = self._least_norm = math.nan
        self._above = self._norm_above = 0.0
        self._rise = 0.0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """How far the two have crept, in the unit of an event."""
        if not level.finite:
            return None
        loss, scale = stats.loss, level.scale
        rows = self._rows = self._rows + 1
        norm = level.norm_level
        if level.warm:
            gain = max(self._gain, 1 / rows)
            self._mean = loss if rows == 1 else self._mean + gain * (loss - self._mean)
            self._best, self._least_norm = self._mean, norm
            self._clear()
            return 0.0
        mean, most = self._mean, _CLIP * scale
        away = loss - mean
        away = -most if away < -most else most if away > most else away
        self._mean = mean = mean + self._gain * away
        best = self._best + self._forget * scale
        if mean < best or level.settling:
            best = mean
        self._best = best
        self._rise = rise = mean - best
        self._above = rise / scale if rise > LEAST_SIZE else 0.0
        if norm == norm:  # noqa: PLR0124 - a norm is logged
            least = self._least_norm + _NORM_FORGET
            if not least < norm or level.settling:
                least = norm
            self._least_norm = least
            self._norm_above = norm - least
        return self._judge()

    def _judge(self) -> float:
        """u, and whether it is the state of the run."""
        if self._above <= _LOSS[0] and self._norm_above <= _NORM[0]:
            self.severe, self.healed = False, True
            return 0.0
        by_loss = (self._above - _LOSS[0]) / _LOSS[1]
        by_norm = (self._norm_above - _NORM[0]) / _NORM[1]
        u = by_norm if by_norm > by_loss else by_loss
        far = by_norm > 0 or self._above > _FAR_SCALES or self._rise > _FAR_SIZE
        self.severe, self.healed = far and u > 1, not far
        u *= EVENT
        return u if u < MOST else MOST

    def cause(self) -> str:
        """Which of the two has crept, and how far."""
        by_loss = (self._above - _LOSS[0]) / _LOSS[1]
        if by_loss >= (self._norm_above - _NORM[0]) / _NORM[1]:
            crept = f"the loss has crept {self._rise:.2f} nats above its best"
            return crept if not self.healed else f"{crept}, which harder data may do"
        return f"the gradient norm has crept to x{math.exp(min(self._norm_above, 50)):.1f} of its least"

    def splice(self) -> None:
        """The average begins anew."""
        self._rows = 0
        self._clear()

    def _clear(self) -> None:
        self._above = self._norm_above = self._rise = 0.0
        self.severe, self.healed = False, True

    def state(self) -> Mapping[str, object]:
        """The average, the best and the least."""
        known = (self._mean, self._best, self._least_norm)
        return {
            "rows": self._rows,
            "levels": [None if math.isnan(value) else value for value in known],
            "above": [self._above, self._norm_above, self._rise],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._rows = state["rows"]
        levels = [math.nan if value is None else value for value in state["levels"]]
        self._mean, self._best, self._least_norm = levels
        self._above, self._norm_above, self._rise = state["above"]
        self._judge()
