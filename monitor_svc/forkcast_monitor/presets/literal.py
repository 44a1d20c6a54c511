"""The literal rule: robust z of three weighted signals, 2.5 at three rows running or 3.2 at one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from forkcast.departures import TierRules
from forkcast.level import Level
from forkcast.records import StepStats
from forkcast_monitor.presets.base import Preset
from forkcast_monitor.presets.literal_index import LiteralIndex
from forkcast_monitor.presets.literal_measures import Disagreement, InternalEntropy, Volatility
from forkcast_monitor.signals.base import MOST, SignalBase, SignalRules

_WEIGHTS: Final[Mapping[str, float]] = {"volatility": 0.5, "entropy": 0.3, "disagreement": 0.2}


class Literal(SignalBase):
    """u is the index's z, at least 0 and at most 8. It fires about once in 400 healthy rows (see
    docs/experiments.md): for comparison, not to be left on.
    """

    weight: ClassVar[float] = 1.0

    def __init__(self, rules: SignalRules) -> None:
        self._measures: dict[str, Volatility | InternalEntropy | Disagreement] = {
            "volatility": Volatility(rules),
            "entropy": InternalEntropy(rules),
            "disagreement": Disagreement(rules),
        }
        self._index = LiteralIndex(_WEIGHTS, rules.window, rules.warmup, rules.z)
        self._z = 0.0

    def update(self, stats: StepStats, level: Level) -> float | None:
        """The index's z at this row, clipped to what a component may say."""
        del level
        self._z = self._index.fold({n: one.update(stats) for n, one in self._measures.items()})
        self.healed = self._z <= 0
        return min(max(self._z, 0.0), MOST)

    def cause(self) -> str:
        """The index's z."""
        return f"the weighted index is {self._z:.1f} of its spreads above its median"

    def state(self) -> Mapping[str, object]:
        """The averages, the windows and the last z."""
        return {
            "measures": {name: dict(one.state()) for name, one in self._measures.items()},
            "index": self._index.state(),
            "z": self._z,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for name, one in self._measures.items():
            one.restore(state["measures"][name])
        self._index.restore(state["index"])
        self._z = state["z"]
        self.healed = self._z <= 0


LITERAL: Final = Preset(
    signals={"literal": Literal},
    tiers=TierRules(z=2.5, consecutive_steps=3, single_z=3.2, cooldown_steps=200),
    quiet=True,
    source="Forkcast 0.1, robust z of volatility, entropy and disagreement",
)
