"""axolotl's loss watchdog: three losses in a row above a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.presets.base import Rule, rule
from forkcast_monitor.signals.base import SignalRules

#: Its threshold has no default; its documentation advises about twice the loss at the start.
_TIMES_THE_FIRST: Final = 2.0
_PATIENCE: Final = 3


class LossWatchdog(Rule):
    """Three losses in a row above twice the first one."""

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._threshold: float | None = None
        self._violations = 0

    def excess(self, stats: StepStats) -> float | None:
        """The loss over the threshold."""
        loss = stats.loss
        if self._threshold is None:
            self._threshold = _TIMES_THE_FIRST * loss
        self._violations = self._violations + 1 if loss > self._threshold else 0
        if self._violations < _PATIENCE:
            return None
        self._cause = f"{self._violations} losses in a row above {self._threshold:.3g}"
        return loss / self._threshold if self._threshold > 0 else 1.0

    def kept(self) -> Mapping[str, object]:
        """The threshold and the count."""
        return {"threshold": self._threshold, "violations": self._violations}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore them."""
        self._threshold, self._violations = kept["threshold"], kept["violations"]


AXOLOTL: Final = rule(
    "lossWatchdog",
    LossWatchdog,
    "axolotl-ai-cloud/axolotl, src/axolotl/utils/callbacks/__init__.py, 03f8486eeb52",
)
