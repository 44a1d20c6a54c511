"""The detector's configuration: the defaults of the rules, overridden field by field by a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forkcast.trigger import TriggerRules
from forkcast.uncertainty import IndexRules
from forkcast_monitor.signals import default_weights
from forkcast_monitor.signals.base import SignalRules
from forkcast_wire.manifest import Uncertainty


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """The rules in force: of the index, of its triggers, and of the signals."""

    index: IndexRules
    trigger: TriggerRules
    signals: SignalRules


def configure(given: Uncertainty) -> DetectorConfig:
    """The rules in force for a manifest. Raises ValueError if they contradict each other."""
    trigger = TriggerRules(
        **_given(given, "warmup_steps", "cooldown_steps", "calm_steps"),
        **_given(given.trigger, "z", "consecutive_steps", "single_z", "force_every_steps"),
    )
    signals = _given(given, "ema_decay", horizon="forecast_horizon_steps")
    return DetectorConfig(
        index=IndexRules(
            weights=default_weights() if given.weights is None else dict(given.weights),
            warmup_steps=trigger.warmup_steps,
            outside_z=trigger.z,
            **_given(given, "window"),
        ),
        trigger=trigger,
        signals=SignalRules(**signals),
    )


def _given(part: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The fields that a part of the manifest gives, under the names the rules have for them."""
    fields = {name: getattr(part, name, None) for name in names}
    fields |= {ours: getattr(part, theirs, None) for ours, theirs in renamed.items()}
    return {name: value for name, value in fields.items() if value is not None}
