"""Uncertainty signals by name. To add one: a file here, a line in SIGNALS, and
`scripts/generate_crds.py`, which makes its name known to manifests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from forkcast.ports import Signal
from forkcast.records import TriggerRule
from forkcast_monitor.signals.base import SignalRules
from forkcast_monitor.signals.disagreement import Disagreement
from forkcast_monitor.signals.drift import Drift
from forkcast_monitor.signals.entropy import InternalEntropy
from forkcast_monitor.signals.volatility import Volatility


class SignalKind(Protocol):
    """What makes a signal; see `forkcast.ports.Signal` for its weight, rule and patience."""

    @property
    def weight(self) -> float:
        """Its share of the index."""

    @property
    def rule(self) -> TriggerRule | None:
        """The rule of its triggers; None: as u is over one threshold or the other."""

    @property
    def patient(self) -> bool:
        """Whether a departure may heal by itself."""

    def __call__(self, rules: SignalRules) -> Signal:
        """A signal that has seen nothing."""


SIGNALS: Mapping[str, SignalKind] = {
    "volatility": Volatility,
    "entropy": InternalEntropy,
    "drift": Drift,
    "disagreement": Disagreement,
}
