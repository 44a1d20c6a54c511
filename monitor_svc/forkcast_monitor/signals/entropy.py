"""Internal entropy: attention that collapses, attention logits that grow.

A slow divergence shows inside a model hundreds of steps before its loss says anything. These are
judged as levels, not as departures: an average of its own follows a collapse down and calls it
normal. A level counts only when it has been there in three samples running, so that one odd sequence
is none.

A level that most runs never reach is an event, and no more: GPT-2 of 124M without QK-norm trained well
with logits of 460, while of 51M it had diverged by then. Only beyond what any healthy run showed does
it ask for a branch. The limits stand in docs/experiments.md with the runs that they come from; there,
too, why RMS_t, the largest gradient over its second moment, is none of the channels: of an embedding
it is in the hundreds in healthy runs and in failing ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from forkcast.level import Level
from forkcast.records import StepStats, TriggerRule
from forkcast_monitor.signals.base import EVENT, MOST, SignalBase, SignalRules

_SAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class _Limit:
    """begins: the level from which a channel counts. event: that of an event. severe: beyond what any
    healthy run showed. Logarithmic between them and beyond; event < begins for what must not fall.
    """

    begins: float
    event: float
    severe: float
    words: str

    def harmless(self, level: float) -> bool:
        """Whether the level says nothing."""
        return level >= self.begins if self.event < self.begins else level <= self.begins

    def mildest(self, samples: Sequence[float]) -> float:
        """Of one or more."""
        return max(samples) if self.event < self.begins else min(samples)

    def reached(self, level: float) -> bool:
        """Whether the level asks for a branch."""
        return level < self.severe if self.event < self.begins else level > self.severe

    def u(self, level: float) -> float:
        """The level in the unit of an event, in [0, MOST]."""
        if self.harmless(level):
            return 0.0
        if level <= 0:
            return MOST
        far = math.log(level) - math.log(self.begins)
        u = EVENT * far / (math.log(self.event) - math.log(self.begins))
        return min(max(u, 0.0), MOST)


LIMITS: Final[Mapping[str, _Limit]] = {
    "logit": _Limit(60.0, 120.0, 1000.0, "largest attention logit {:.0f}"),
    "collapse": _Limit(0.20, 0.10, 0.05, "attention entropy {:.3f} of its most"),
}


class InternalEntropy(SignalBase):
    """u of the channel that says most: the largest attention logit or the lowest layer's entropy, each the
    mildest of its last three samples.
    """

    weight = 0.3
    rule = TriggerRule.INTERNAL
    #: It never asks for a branch because it lasts.
    patient = True
    healed = True

    def __init__(self, rules: SignalRules) -> None:
        del rules
        #: Of each channel that was ever sampled.
        self._samples: dict[str, list[float]] = {}
        self._layer: int | None = None
        self._u: float | None = None
        self._channel = ""

    def update(self, stats: StepStats, level: Level) -> float | None:
        """The level of the last samples; that of the sample before if none was taken at this row."""
        del level
        taken = False
        if stats.attention_logit_max is not None:
            taken |= self._take("logit", abs(stats.attention_logit_max))
        if stats.attention_entropy:
            lowest = min(stats.attention_entropy)
            if self._take("collapse", lowest):
                layers = stats.attention_entropy
                taken, self._layer = True, layers.index(lowest) if len(layers) > 1 else None
        if taken:
            self._judge()
        return self._u

    def _take(self, channel: str, value: float) -> bool:
        if not -1e100 < value < 1e100:
            return False
        samples = self._samples.setdefault(channel, [])
        samples.append(value)
        if len(samples) > _SAMPLES:
            del samples[0]
        return True

    def _level(self, channel: str) -> float | None:
        samples = self._samples.get(channel, [])
        return LIMITS[channel].mildest(samples) if len(samples) == _SAMPLES else None

    def _judge(self) -> None:
        most, known = 0.0, True
        self.severe = False
        for channel, samples in self._samples.items():
            limit = LIMITS[channel]
            if len(samples) < _SAMPLES:
                known = False  # and so it cannot be said yet that all is well
                continue
            if limit.harmless(samples[-1]):  # and so is the mildest of them
                continue
            level = limit.mildest(samples)
            u, severe = limit.u(level), limit.reached(level)
            if (severe, u) > (self.severe, most):
                self.severe, most, self._channel = severe, u, channel
        self._u = most if most or known else None

    def cause(self) -> str:
        """The channel that says most, its level, and the layer if it is of one."""
        channel = self._channel or "logit"
        level = self._level(channel)
        where = (
            f" in layer {self._layer}" if channel == "collapse" and self._layer is not None else ""
        )
        return f"{LIMITS[channel].words.format(level or 0.0)}{where} in {_SAMPLES} samples running"

    def splice(self) -> None:
        """The samples were taken of another state of the model."""
        self._samples = {name: [] for name in self._samples}
        self._u, self.severe = None, False

    def state(self) -> Mapping[str, object]:
        """The last samples."""
        return {
            "samples": {name: list(values) for name, values in self._samples.items()},
            "layer": self._layer,
            "u": self._u,
            "channel": self._channel,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._samples = {name: list(values) for name, values in state["samples"].items()}
        self._layer, self._u, self._channel = state["layer"], state["u"], state["channel"]
        level = self._level(self._channel) if self._channel else None
        self.severe = bool(self._u) and level is not None and LIMITS[self._channel].reached(level)
