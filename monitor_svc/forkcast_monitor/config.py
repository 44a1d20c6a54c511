"""The detector's configuration: the defaults of the rules, overridden field by field by a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forkcast.trigger import TriggerRules
from forkcast_monitor.presets import PRESETS
from forkcast_monitor.presets.base import Preset
from forkcast_monitor.signals.base import SignalRules
from forkcast_wire.manifest import Uncertainty


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """The rules in force: which signals, their shares of the index, what they are made with, and when
    what they say is an event or a trigger.
    """

    preset: Preset
    weights: Mapping[str, float]
    signals: SignalRules
    trigger: TriggerRules


def configure(given: Uncertainty) -> DetectorConfig:
    """The rules in force for a manifest. Raises ValueError if they contradict each other."""
    preset = PRESETS[given.preset or "Forkcast"]
    tiers = replace(
        preset.tiers,
        **_given(given, "patience_rows", "cooldown_steps"),
        **_given(given.trigger, "z", "consecutive_steps", "single_z"),
    )
    if preset.quiet:
        tiers = replace(tiers, quiet_steps=tiers.cooldown_steps, cooldown_steps=0)
    trigger = TriggerRules(
        tiers=tiers,
        **_given(given, "warmup_steps", "calm_steps"),
        **_given(given.trigger, "force_every_steps"),
    )
    return DetectorConfig(
        preset=preset,
        weights=_weights(preset, given.weights),
        signals=SignalRules(
            warmup=trigger.warmup_steps,
            z=tiers.z,
            **_given(given, "ema_decay", "window", horizon="forecast_horizon_steps"),
        ),
        trigger=trigger,
    )


def _weights(preset: Preset, given: Mapping[str, float] | None) -> dict[str, float]:
    """The share of each signal of the preset; they sum to 1."""
    wanted = {name: kind.weight for name, kind in preset.signals.items()}
    if given is not None and preset.weighted:
        wanted = {name: given.get(name, 0.0) for name in preset.signals}
    total = math.fsum(wanted.values())
    return {name: weight / total for name, weight in wanted.items()}


def _given(part: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The fields that a part of the manifest gives, under the names the rules have for them."""
    fields = {name: getattr(part, name, None) for name in names}
    fields |= {ours: getattr(part, theirs, None) for ours, theirs in renamed.items()}
    return {name: value for name, value in fields.items() if value is not None}
