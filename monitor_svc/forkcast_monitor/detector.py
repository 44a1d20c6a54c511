"""One run folded: statistics in, index and triggers out. A pure function of the ordered stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from forkcast.records import Index, StepStats, Trigger
from forkcast.robust import usable
from forkcast.spikes import SpikeScore
from forkcast.trigger import TriggerMachine
from forkcast.uncertainty import UncertaintyIndex
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.signals import SIGNALS


class Detector:
    """Folds the steps of one lineage in order. `state` and `restore` are bit-equal."""

    def __init__(self, config: DetectorConfig, run_uid: str) -> None:
        self.config = config
        self._signals = {name: make(config.signals) for name, make in SIGNALS.items()}
        self._index = UncertaintyIndex(config.index)
        self.triggers = TriggerMachine(config.trigger, run_uid)
        self._spikes = SpikeScore()
        self.last: Index | None = None

    def fold(self, stats: StepStats) -> tuple[Index, Trigger | None]:
        """Fold one step."""
        raw = {name: signal.update(stats) for name, signal in self._signals.items()}
        index = self._index.fold(stats.step, stats.epoch, raw)
        finite = usable(stats.loss) and usable(stats.grad_norm)
        spiked = self._spikes.fold(stats.step, stats.loss, stats.grad_norm)
        trigger = self.triggers.fold(
            index, finite=finite, validation_loss=stats.validation_loss, spiked=spiked
        )
        self.last = index
        return index, trigger

    @property
    def over_threshold(self) -> bool:
        """Whether the index stood over its threshold at the last step."""
        return self.last is not None and self.triggers.over(self.last.z)

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "signals": {name: dict(signal.state()) for name, signal in self._signals.items()},
            "index": self._index.state(),
            "triggers": self.triggers.state(),
            "spikes": self._spikes.state(),
            "last": None if self.last is None else asdict(self.last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        for name, signal in self._signals.items():
            signal.restore(state["signals"][name])
        self._index.restore(state["index"])
        self.triggers.restore(state["triggers"])
        self._spikes.restore(state["spikes"])
        last = state["last"]
        self.last = None if last is None else Index(**last)
