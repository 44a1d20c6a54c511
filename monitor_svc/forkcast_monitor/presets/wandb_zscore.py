"""The z-score filter of W&B's automations, on the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.presets.base import Recent, Rule, rule
from forkcast_monitor.signals.base import SignalRules

_WINDOW: Final = 30
_LIMIT: Final = 3.0


class ZScoreFilter(Rule):
    """A loss whose z in the window of the 30 rows before it exceeds 3, from row 31 on: the defaults of
    MetricZScoreFilter, upwards only. The client only names the numbers; that the window ends before
    the new value, and is full, is our reading of it.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._losses = Recent(_WINDOW)

    def excess(self, stats: StepStats) -> float | None:
        """The z over 3."""
        loss, window = stats.loss, self._losses
        z = 0.0
        if window.full:
            mean, sd = window.mean_and_sd()
            z = (loss - mean) / sd if sd > 0 else 0.0
        window.push(loss)
        if not z > _LIMIT:
            return None
        self._cause = f"z of the loss {z:.1f} beside the last {_WINDOW}"
        return z / _LIMIT

    def kept(self) -> Mapping[str, object]:
        """The window."""
        return {"losses": self._losses.state()}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore it."""
        self._losses.restore(kept["losses"])


WANDB_ZSCORE: Final = rule(
    "zScore",
    ZScoreFilter,
    "wandb/wandb, wandb/automations/_filters/run_metrics.py, 7df6ab3df24a",
)
