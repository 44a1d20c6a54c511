"""What every signal is made with, and what most of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from forkcast import regressions
from forkcast.level import Level
from forkcast.records import StepStats, TriggerRule

#: The unit of every signal: about one healthy row in 100,000 reaches it, or, of the slow and the
#: internal ones, no row of a healthy run did.
EVENT: Final = 3.2
#: No component says more.
MOST: Final = 8.0
#: What is higher by less is no departure, nats/token; of a validation loss neither.
LEAST_SIZE: Final = regressions.LEAST_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRules:
    """ema_decay: of the moving baselines per row, in [0, 1). horizon: of forecasts, rows, >= 1. window: rows
    over which what was best is forgotten by a quarter of a scale, >= 16. warmup: rows before the first
    event. z: the threshold of the consecutive rule.
    """

    ema_decay: float = 0.98
    horizon: int = 50
    window: int = 512
    warmup: int = 200
    z: float = 2.5


class SignalBase:
    """A signal whose departures do not heal by themselves, and that says nothing of causes.

    severe: whether the last row asks for a branch at once. healed: whether the departure is over.
    rule: what its triggers are recorded as; None: Single or Consecutive, by what u exceeded.
    """

    weight: ClassVar[float] = 0.0
    #: Whether a departure may heal by itself, so that a branch waits for it to do so.
    patient: ClassVar[bool] = False
    rule: ClassVar[TriggerRule | None] = None
    severe: bool = False
    healed: bool = True

    def cause(self) -> str:
        """What the last row showed, in words."""
        return ""

    def splice(self) -> None:
        """What comes next does not follow what came; most signals do not mind."""

    def update(self, stats: StepStats, level: Level) -> float | None:
        """See `forkcast.ports.Signal`."""
        raise NotImplementedError

    def state(self) -> Mapping[str, object]:
        """See `forkcast.ports.Signal`."""
        return {}

    def restore(self, state: Mapping[str, object]) -> None:
        """See `forkcast.ports.Signal`."""
