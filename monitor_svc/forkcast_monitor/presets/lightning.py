"""Lightning Fabric's SpikeDetection: a rising loss that is three times the mean of the last ten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.presets.base import Recent, Rule, rule
from forkcast_monitor.signals.base import SignalRules

_WINDOW: Final = 10
#: The loss differs from the mean by so many means.
_RELATIVE: Final = 2.0


class SpikeDetection(Rule):
    """A loss above the last accepted one that differs from the mean of the last ten accepted ones by at
    least twice that mean, from the second row on. A spike is not accepted.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._losses = Recent(_WINDOW)

    def excess(self, stats: StepStats) -> float | None:
        """The difference over twice the mean."""
        loss, window = stats.loss, self._losses
        if window.values and loss > window.values[-1]:
            mean = window.mean()
            apart, limit = abs(loss - mean), abs(_RELATIVE * mean)
            if apart >= limit:
                self._cause = f"loss {loss:.3g}, mean of the last {len(window.values)} {mean:.3g}"
                return apart / limit if limit > 0 else 1.0
        window.push(loss)
        return None

    def kept(self) -> Mapping[str, object]:
        """The window; its last value is the one before."""
        return {"losses": self._losses.state()}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore it."""
        self._losses.restore(kept["losses"])


LIGHTNING: Final = rule(
    "spikeDetection",
    SpikeDetection,
    "Lightning-AI/pytorch-lightning, src/lightning/fabric/utilities/spike.py, 0c94c0ea241f",
)
