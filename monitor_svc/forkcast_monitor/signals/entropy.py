"""Internal entropy: attention that collapses, logits that grow, activations that widen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forkcast.records import StepStats
from forkcast.robust import Ema, usable
from forkcast_monitor.signals.base import SignalRules


class InternalEntropy:
    """Channels, sampled every few steps: ``collapse`` = fall of the lowest layer's normalised
    attention entropy, ``logit`` = rise of the log of the largest attention logit, ``width`` = rise
    of the log of the largest activation sd; each against its own EMA, whose decay is per step of
    the run, however many lie between two samples.
    """

    weight = 0.3

    def __init__(self, rules: SignalRules) -> None:
        self._emas = {name: Ema(rules.ema_decay) for name in ("collapse", "logit", "width")}
        self._sampled: dict[str, int] = {}  # by channel, the step of the last sample

    def update(self, stats: StepStats) -> Mapping[str, float | None]:
        """Departures of this step; None if nothing was sampled."""
        values: dict[str, float | None] = dict.fromkeys(self._emas)
        if stats.attention_entropy:
            values["collapse"] = -min(stats.attention_entropy)
        if stats.attention_logit_max is not None:
            values["logit"] = _log(abs(stats.attention_logit_max))
        if stats.activation_sd:
            values["width"] = _log(max(stats.activation_sd))
        return {name: self._departure(name, value, stats.step) for name, value in values.items()}

    def _departure(self, name: str, value: float | None, step: int) -> float | None:
        if value is None or not usable(value):
            return None
        before = self._emas[name].value
        self._emas[name].push(value, max(1, step - self._sampled.get(name, step - 1)))
        self._sampled[name] = step
        return None if before is None else value - before

    def state(self) -> Mapping[str, object]:
        """The baselines and when they were last sampled."""
        emas = {name: ema.state() for name, ema in self._emas.items()}
        return {"emas": emas, "sampled": dict(self._sampled)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for name, ema in self._emas.items():
            ema.restore(state["emas"][name])
        self._sampled = {name: int(step) for name, step in state["sampled"].items()}


def _log(value: float) -> float | None:
    """The logarithm of a positive finite value, else None: not measured."""
    return math.log(value) if usable(value) and value > 0 else None
