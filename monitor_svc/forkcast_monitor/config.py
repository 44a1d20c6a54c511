"""The detector's configuration: the shipped file, overridden by a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from forkcast.trigger import TriggerRules
from forkcast.uncertainty import IndexRules
from forkcast_wire.manifest import Uncertainty


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """index, trigger: the rules. ema_decay: of the baselines. horizon: of the forecasts, steps."""

    index: IndexRules
    trigger: TriggerRules
    ema_decay: float
    horizon: int


@cache
def shipped() -> Mapping[str, Any]:
    """The values of uncertainty_config.yaml; read once, it takes as long as a run's whole opening."""
    text = files("forkcast_monitor").joinpath("uncertainty_config.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def configure(given: Uncertainty) -> DetectorConfig:
    """The rules in force for a manifest. Raises ValueError where they contradict each other."""
    base = shipped()
    trigger = base["trigger"]
    if given.trigger is not None:
        trigger = {
            "z": given.trigger.z,
            "consecutiveSteps": given.trigger.consecutive_steps,
            "singleZ": given.trigger.single_z,
            "forceEverySteps": given.trigger.force_every_steps,
        }

    def pick(value: Any, name: str) -> Any:
        return base[name] if value is None else value

    warmup = int(pick(given.warmup_steps, "warmupSteps"))
    weights = given.weights.model_dump() if given.weights is not None else base["weights"]
    return DetectorConfig(
        index=IndexRules(
            window=int(pick(given.window, "window")),
            weights=weights,
            warmup_steps=warmup,
            outside_z=float(trigger["z"]),
        ),
        trigger=TriggerRules(
            z=float(trigger["z"]),
            consecutive_steps=int(trigger["consecutiveSteps"]),
            single_z=float(trigger["singleZ"]),
            cooldown_steps=int(pick(given.cooldown_steps, "cooldownSteps")),
            warmup_steps=warmup,
            force_every_steps=int(trigger["forceEverySteps"]),
        ),
        ema_decay=float(pick(given.ema_decay, "emaDecay")),
        horizon=int(pick(given.forecast_horizon_steps, "forecastHorizonSteps")),
    )
