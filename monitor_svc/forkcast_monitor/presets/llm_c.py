"""llm.c's outlier detector: z of the new value in a window of 128 that includes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast.robust import usable
from forkcast_monitor.presets.base import Recent, Rule, rule
from forkcast_monitor.signals.base import SignalRules

_WINDOW: Final = 128
#: Its flags -sl and -sg are off unless given; this is what its script for GPT-3 125M gives.
_LIMIT: Final = 7.0


class OutlierDetector(Rule):
    """z of loss or gradient norm above 7, from the 129th value on. The window holds the new value
    already, so z is at most 127 / sqrt(127) = 11.3, whatever the value.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._losses, self._norms = Recent(_WINDOW), Recent(_WINDOW)

    def excess(self, stats: StepStats) -> float | None:
        """The z over 7, the larger of loss and norm."""
        z, name = max(
            (_z(self._losses, stats.loss), "loss"),
            (_z(self._norms, stats.grad_norm), "gradient norm"),
        )
        if not z > _LIMIT:
            return None
        self._cause = f"z of the {name} {z:.1f} in the last {_WINDOW}"
        return z / _LIMIT

    def kept(self) -> Mapping[str, object]:
        """The two windows."""
        return {"losses": self._losses.state(), "norms": self._norms.state()}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore them."""
        self._losses.restore(kept["losses"])
        self._norms.restore(kept["norms"])


def _z(window: Recent, value: float) -> float:
    """The z of a value in the window that it enters; 0 until the window was full before it."""
    if not usable(value):
        return 0.0
    judged = window.full
    window.push(value)
    if not judged:
        return 0.0
    mean, sd = window.mean_and_sd()
    return (value - mean) / sd if sd > 0 else 0.0


LLM_C: Final = rule(
    "outlier",
    OutlierDetector,
    "karpathy/llm.c, llmc/outlier_detector.h and scripts/run_gpt3_125M.sh, f1e2ace65149",
)
