"""Megatron-LM's spiky loss: ten times the largest loss of the first hundred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forkcast.records import StepStats
from forkcast_monitor.presets.base import Rule, rule
from forkcast_monitor.signals.base import SignalRules

_SAMPLES: Final = 100
_FACTOR: Final = 10.0


class SpikyLoss(Rule):
    """|loss| of at least ten times the largest of the first 100 rows, from row 101 on. The largest is not
    followed later.
    """

    def __init__(self, rules: SignalRules) -> None:
        super().__init__(rules)
        self._rows = 0
        self._largest = 0.0

    def excess(self, stats: StepStats) -> float | None:
        """|loss| over ten times the largest."""
        loss = abs(stats.loss)
        if self._rows < _SAMPLES:
            self._rows += 1
            self._largest = max(self._largest, loss)
            return None
        limit = _FACTOR * self._largest
        if loss < limit:
            return None
        self._cause = f"loss {loss:.3g}, largest of the first {_SAMPLES} rows {self._largest:.3g}"
        return loss / limit if limit > 0 else 1.0

    def kept(self) -> Mapping[str, object]:
        """How many rows were sampled, and the largest."""
        return {"rows": self._rows, "largest": self._largest}

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Restore them."""
        self._rows, self._largest = kept["rows"], kept["largest"]


MEGATRON: Final = rule(
    "spikyLoss",
    SpikyLoss,
    "NVIDIA/Megatron-LM, pretrain_gpt.py, 000ab9d6719e, "
    "and megatron/core/rerun_state_machine.py, 00caa53af309",
)
