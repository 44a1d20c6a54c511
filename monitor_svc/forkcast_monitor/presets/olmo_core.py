"""OLMo-core's SpikeScore: a value beyond six standard deviations of the 128 before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast.robust import usable
from forkcast_monitor.presets.base import Recent, Rule, rule
from forkcast_monitor.signals.base import SignalRules

_WINDOW: Final = 128
_SIGMAS: Final = 6.0
_LEAST_SD: Final = 1e-10


class SpikeScore(Rule):
    """Loss or gradient norm above mean + 6 sd of the previous 128 values of its own, from the 129th on.
    Spikes enter the window, too, and so hide what follows them.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._losses, self._norms = Recent(_WINDOW), Recent(_WINDOW)

    def excess(self, stats: StepStats) -> float | None:
        """Deviation over six standard deviations, the larger of loss and norm."""
        found = [
            (excess, name)
            for name, window, value in (
                ("loss", self._losses, stats.loss),
                ("gradient norm", self._norms, stats.grad_norm),
            )
            if (excess := _beyond(window, value)) is not None
        ]
        if not found:
            return None
        excess, name = max(found)
        self._cause = f"{name} {_SIGMAS * excess:.1f} sd above the mean of the last {_WINDOW}"
        return excess

    def kept(self) -> Mapping[str, object]:
        """The two windows."""
        return {"losses": self._losses.state(), "norms": self._norms.state()}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore them."""
        self._losses.restore(kept["losses"])
        self._norms.restore(kept["norms"])


def _beyond(window: Recent, value: float) -> float | None:
    """The excess of a value over the window before it, which it then enters."""
    if not usable(value):
        return None
    excess = None
    if window.full:
        mean, sd = window.mean_and_sd()
        if sd >= _LEAST_SD and value > mean + _SIGMAS * sd:
            excess = (value - mean) / (_SIGMAS * sd)
    window.push(value)
    return excess


OLMO_CORE: Final = rule(
    "spikeScore",
    SpikeScore,
    "allenai/OLMo-core, src/olmo_core/train/callbacks/stability_monitor.py, 138b1fca4992",
)
