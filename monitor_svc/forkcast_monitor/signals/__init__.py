"""Uncertainty signals by name. To add one: a file here, and a line in SIGNALS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from forkcast.ports import Signal
from forkcast_monitor.signals.disagreement import Disagreement
from forkcast_monitor.signals.entropy import InternalEntropy
from forkcast_monitor.signals.volatility import Volatility

#: (EMA decay, forecast horizon in steps) -> signal
SIGNALS: Mapping[str, Callable[[float, int], Signal]] = {
    "volatility": Volatility,
    "entropy": InternalEntropy,
    "disagreement": Disagreement,
}
