"""LLM Foundry's KillLossSpike: five losses in a row at twice the mean, or a window of high losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.presets.base import Recent, Rule, rule
from forkcast_monitor.signals.base import SignalRules

#: Its least window. Where the length of a run is known it takes a twentieth of it if that is more.
_WINDOW: Final = 100
_MULTIPLE: Final = 2.0
_PATIENCE: Final = 4
_CAP: Final = 10.0


class KillLossSpike(Rule):
    """More than four losses in a row of at least twice the mean of the 100 before each; or, from row
    200 on, half of the last 100 above 10 nats.

    It means to lower that cap to the largest loss of its first window, when the batch number equals the
    window's size; at that batch the window is not full yet, so the cap stays what it is.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._losses = Recent(_WINDOW)
        self._rows = self._outliers = 0

    def excess(self, stats: StepStats) -> float | None:
        """The loss over twice the mean, or the share of high losses over a half."""
        self._rows += 1
        loss, window = stats.loss, self._losses
        excess = None
        if window.full:
            limit = _MULTIPLE * window.mean()
            high = sum(1 for value in window.values if value > _CAP)
            self._outliers = self._outliers + 1 if loss >= limit else 0
            if self._outliers > _PATIENCE:
                excess = loss / limit if limit > 0 else 1.0
                self._cause = (
                    f"{self._outliers} losses in a row at twice the mean of the last {_WINDOW}"
                )
            elif self._rows >= 2 * _WINDOW and high >= _WINDOW / 2:
                excess = 2 * high / _WINDOW
                self._cause = f"{high} of the last {_WINDOW} losses above {_CAP:g} nats"
        window.push(loss)
        return excess

    def kept(self) -> Mapping[str, object]:
        """The window and the two counts."""
        return {"losses": self._losses.state(), "counts": [self._rows, self._outliers]}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore them."""
        self._losses.restore(kept["losses"])
        self._rows, self._outliers = kept["counts"]


LLM_FOUNDRY: Final = rule(
    "killLossSpike",
    KillLossSpike,
    "mosaicml/llm-foundry, llmfoundry/callbacks/kill_loss_spike_callback.py, 56891fcb865f",
)
