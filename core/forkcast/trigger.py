"""Which rule fires at a row: departures, the regressions of slower measurements, and a long calm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from forkcast.departures import NON_FINITE, Departures, Risen, Said, TierRules
from forkcast.records import Tier, TriggerRule
from forkcast.regressions import EventRate, Validations

VALIDATION = "validation"
EVENT_RATE = "eventRate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRules:
    """tiers: when a departure is an event, and when it asks for a branch. warmup_steps: no event before
    so many rows, but one that is not finite. force_every_steps: 0 = off. calm_steps: so many steps
    without a departure in an epoch >= 1 give a Calm trigger; 0 = off.
    """

    tiers: TierRules = field(default_factory=TierRules)
    warmup_steps: int = 200
    force_every_steps: int = 0
    calm_steps: int = 1000

    def thresholds(self) -> dict[str, float]:
        """The limits as a trigger records them."""
        return {
            "z": self.tiers.z,
            "consecutive_steps": float(self.tiers.consecutive_steps),
            "single_z": self.tiers.single_z,
            "patience_rows": float(self.tiers.patience_rows),
            "calm_steps": float(self.calm_steps),
        }


@dataclass(frozen=True, slots=True)
class Fired:
    """What fired at a row. name: the signal, or the rule's own name. tier: EVENT is shown and recorded, from
    BRANCH on it is a trigger, too. onset: first step of the departure. severe: whether its signal calls this
    row severe. beside: a departure that another rule's trigger came with.
    """

    name: str
    rule: TriggerRule
    tier: Tier
    onset: int
    severe: bool = False
    beside: Fired | None = None


class TriggerMachine:
    """Folds rows; at most one thing fires a row. Its state restores bit-equal.

    A Calm trigger says that nothing is wrong, and must hide nothing that is.
    """

    def __init__(self, rules: TriggerRules) -> None:
        self.rules = rules
        self.departures = Departures(rules.tiers)
        self._validations = Validations()
        self._rate = EventRate()
        self._epoch = 0
        self._calm = 0

    def fold(
        self,
        step: int,
        epoch: int,
        us: Mapping[str, float],
        signals: Mapping[str, Said],
        z: float,
        *,
        judged: bool,
        finite: bool,
        validation_loss: float | None = None,
    ) -> Fired | None:
        """What fires at this row, or None. us, signals, z, judged, finite: see `Departures.fold`."""
        risen = self.departures.fold(step, us, signals, z, judged=judged, finite=finite)
        fired = None if risen is None else self._of(risen, us, signals)
        if validation_loss is not None and self._validations.fold(validation_loss):
            fired = _higher(
                fired, Fired(VALIDATION, TriggerRule.VALIDATION_REGRESSION, Tier.BRANCH, step)
            )
        if risen is not None and self._rate.fold(step, risen.onset):
            fired = _higher(
                fired, Fired(EVENT_RATE, TriggerRule.INSTABILITY_RATE, Tier.BRANCH, step)
            )
        every = self.rules.force_every_steps
        if every and step > 0 and step % every == 0:
            fired = _higher(fired, Fired("forced", TriggerRule.FORCED, Tier.BRANCH, step))
        if epoch and self._calm_is_due(epoch, z, fired, judged=judged) and fired is None:
            self._calm = 0
            return Fired("calm", TriggerRule.CALM, Tier.BRANCH, step)
        return fired

    def _of(self, risen: Risen, us: Mapping[str, float], signals: Mapping[str, Said]) -> Fired:
        rules = self.rules.tiers
        rule = TriggerRule.NON_FINITE if risen.name == NON_FINITE else None
        if risen.name in signals:
            rule = signals[risen.name].rule
        if rule is None:
            u = us.get(risen.name, 0.0)
            rule = TriggerRule.SINGLE if u > rules.single_z else TriggerRule.CONSECUTIVE
        severe = risen.name in signals and signals[risen.name].severe
        return Fired(risen.name, rule, risen.tier, risen.onset, severe)

    def _calm_is_due(self, epoch: int, z: float, fired: Fired | None, *, judged: bool) -> bool:
        """Count this row; whether the epoch has been calm for long enough. A forced trigger is no
        sign of trouble.
        """
        if epoch != self._epoch:
            self._epoch, self._calm = epoch, 0
        trouble = fired is not None and fired.rule is not TriggerRule.FORCED
        trouble = trouble or z > self.rules.tiers.z or self.departures.open
        self._calm = self._calm + 1 if judged and not trouble else 0
        return 0 < self.rules.calm_steps <= self._calm

    def missed(self, first: int, last: int) -> None:
        """Steps that left no row, first to last."""
        self._rate.missed(first, last)
        self._calm = 0

    def over(self, z: float) -> bool:
        """Whether a run whose index is z has departed and not healed."""
        return z > self.rules.tiers.z or self.departures.open

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "departures": self.departures.state(),
            "validations": self._validations.state(),
            "rate": self._rate.state(),
            "calm": [self._epoch, self._calm],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self.departures.restore(state["departures"])
        self._validations.restore(state["validations"])
        self._rate.restore(state["rate"])
        self._epoch, self._calm = state["calm"]


def _higher(one: Fired | None, other: Fired) -> Fired:
    if one is None:
        return other
    return replace(other, beside=one) if other.tier > one.tier else one
