"""Which rule fires at a row: departures, the regressions of slower measurements, and a long calm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from forkcast.departures import NON_FINITE, Departures, Risen, Said, TierRules
from forkcast.records import Tier, TriggerRule
from forkcast.regressions import EventRate, Validations

VALIDATION = "validation"
EVENT_RATE = "eventRate"
#: What looks back over many rows, so that it tells late what a single row has told already.
_LATE: Final = (TriggerRule.SLOW, TriggerRule.VALIDATION_REGRESSION)
#: For so many rows after a branch was asked for, what comes late is taken for the same cause.
_SAME_CAUSE_ROWS: Final = 200
#: Part of `single_z` from which a signal bears a validation out.
_AGREES: Final = 0.5


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
    row severe. beside: a departure that another rule's trigger came with. note: what its cause ends with, in
    words.
    """

    name: str
    rule: TriggerRule
    tier: Tier
    onset: int
    severe: bool = False
    beside: Fired | None = None
    note: str = ""


class _Cause:
    """The last departure of the loss that a branch was asked for: one cause, one branch.

    A drift that follows a spike by thirty rows, and a validation after them, see what the spike did; that is
    an event that says so. What gets worse asks for its own branch: rows that are severe, internals, losses that are not
    finite. And what lasts longer asks again.
    """

    def __init__(self) -> None:
        self._rows = _SAME_CAUSE_ROWS
        self._step = self._epoch = -1
        #: Onsets of the late departures that have asked, by name.
        self._asked: dict[str, int] = {}

    def fold(self, fired: Fired | None, step: int, epoch: int) -> Fired | None:
        """What is left of it; None of what was told already."""
        if fired is None or fired.tier is not Tier.BRANCH:
            return fired
        late, known = fired.rule in _LATE, self.fresh and epoch == self._epoch
        again = late and self._asked.get(fired.name) == fired.onset
        if late:
            self._asked[fired.name] = fired.onset
        if late and known:
            note = f"{fired.note}; the same cause as the branch asked for at step {self._step:,}"
            return None if again else replace(fired, tier=Tier.EVENT, note=note)
        if fired.rule is not TriggerRule.INTERNAL:
            self._rows, self._step, self._epoch = 0, step, epoch
        return fired

    def row(self) -> None:
        """Another row has passed."""
        self._rows += self._rows < _SAME_CAUSE_ROWS

    @property
    def fresh(self) -> bool:
        """Whether what comes late may still be of this cause."""
        return self._rows < _SAME_CAUSE_ROWS

    def state(self) -> list[Any]:
        """JSON-ready."""
        return [self._rows, self._step, self._epoch, dict(self._asked)]

    def restore(self, state: Sequence[Any]) -> None:
        """Become what `state` was taken from."""
        self._rows, self._step, self._epoch, self._asked = *state[:3], dict(state[3])


class TriggerMachine:
    """Folds rows; at most one thing fires a row. Its state restores bit-equal.

    A Calm trigger says that nothing is wrong, and must hide nothing that is.
    """

    def __init__(self, rules: TriggerRules) -> None:
        self.rules = rules
        self.departures = Departures(rules.tiers)
        self._validations = Validations()
        self._rate = EventRate()
        self._cause = _Cause()
        self._epoch = 0
        self._calm = 0
        #: Whether a row of which less is to be said than what an event begins with would change no more, in
        #: epoch 0, than what `Departures.note` does.
        self.idle = False

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
        self._cause.row()
        fired = None
        if risen is not None:
            fired = self._cause.fold(self._of(risen, us, signals), step, epoch)
        # what is told late, of a cause that is known, is no other event
        other = fired is not None and not fired.note
        if risen is not None and other and self._rate.fold(step, risen.onset):
            fired = _higher(
                fired, Fired(EVENT_RATE, TriggerRule.INSTABILITY_RATE, Tier.BRANCH, step)
            )
        if validation_loss is not None:
            worse = self._worse(step, validation_loss, us, signals)
            fired = _higher(fired, self._cause.fold(worse, step, epoch))
        every = self.rules.force_every_steps
        if every and step > 0 and step % every == 0:
            fired = _higher(fired, Fired("forced", TriggerRule.FORCED, Tier.BRANCH, step))
        if epoch and self._calm_is_due(epoch, z, fired, judged=judged) and fired is None:
            self._calm = 0
            fired = Fired("calm", TriggerRule.CALM, Tier.BRANCH, step)
        self.idle = self.departures.none and not self._cause.fresh and not every
        return fired

    def _worse(
        self, step: int, loss: float, us: Mapping[str, float], signals: Mapping[str, Said]
    ) -> Fired | None:
        """What a validation comes to. That data are harder to learn moves no validation loss: one that rises
        beside the training loss says that it is the state of the run.
        """
        watched = _AGREES * self.rules.tiers.single_z
        agrees = any(
            u > watched and signals[name].rule is not TriggerRule.INTERNAL for name, u in us.items()
        )
        worse = self._validations.fold(step, loss, agrees=agrees)
        if worse is None:
            return None
        note = f"; {worse.running} running, now {worse.excess:.2f} nats above"
        rule = TriggerRule.VALIDATION_REGRESSION
        return Fired(VALIDATION, rule, worse.tier, min(worse.onset, step), note=note)

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
            "cause": self._cause.state(),
            "calm": [self._epoch, self._calm],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self.departures.restore(state["departures"])
        self._validations.restore(state["validations"])
        self._rate.restore(state["rate"])
        self._cause.restore(state["cause"])
        self._epoch, self._calm = state["calm"]
        self.idle = False


def _higher(one: Fired | None, other: Fired | None) -> Fired | None:
    if one is None or other is None:
        return one or other
    return replace(other, beside=one) if other.tier > one.tier else one
