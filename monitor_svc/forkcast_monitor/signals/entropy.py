"""Internal entropy: attention that collapses, logits that grow, activations that widen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from forkcast.records import StepStats
from forkcast.robust import Ema, usable


class InternalEntropy:
    """Channels, sampled every few steps: ``collapse`` = fall of the lowest layer's normalised
    attention entropy, ``logit`` = rise of the log of the largest attention logit, ``width`` = rise
    of the log of the largest activation sd; each against its own EMA.
    """

    def __init__(self, decay: float, horizon: int) -> None:
        del horizon
        # sampled about every tenth step, the baseline keeps the same span in steps
        self._emas = {name: Ema(decay**10) for name in ("collapse", "logit", "width")}

    def update(self, stats: StepStats) -> Mapping[str, float | None]:
        """Departures of this step; None where nothing was sampled."""
        values: dict[str, float | None] = dict.fromkeys(self._emas)
        if stats.attention_entropy:
            values["collapse"] = -min(stats.attention_entropy)
        if stats.attention_logit_max is not None:
            values["logit"] = _log(abs(stats.attention_logit_max))
        if stats.activation_sd:
            values["width"] = _log(max(stats.activation_sd))
        return {name: self._departure(name, value) for name, value in values.items()}

    def _departure(self, name: str, value: float | None) -> float | None:
        if value is None or not usable(value):
            return None
        before = self._emas[name].value
        self._emas[name].push(value)
        return None if before is None else value - before

    def state(self) -> Mapping[str, object]:
        """The baselines."""
        return {name: ema.state() for name, ema in self._emas.items()}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore them."""
        for name, ema in self._emas.items():
            ema.total, ema.weight = state[name]  # type: ignore[misc]


def _log(value: float) -> float | None:
    """The logarithm of a positive finite value, else None: not measured."""
    return math.log(value) if usable(value) and value > 0 else None
