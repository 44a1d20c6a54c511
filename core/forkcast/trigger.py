"""Index to trigger: thresholds, cooldown, and the regression rules on slower measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkcast.records import Index, Trigger, TriggerRule

_DEPARTED_Z = 1.0  # the departure began at the first step of the present run above this z
_VALIDATIONS = 8
_VALIDATION_SIGMAS = 1.5
_RATE_WINDOW = 10_000
_RATE_RISE = 1.25
_RATE_P = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRules:
    """z at ``consecutive_steps`` in a row, or ``single_z`` once; none within ``cooldown_steps`` of
    the last trigger or of a new epoch. force_every_steps: 0 = off.
    """

    z: float = 2.5
    consecutive_steps: int = 3
    single_z: float = 3.2
    cooldown_steps: int = 200
    warmup_steps: int = 200
    force_every_steps: int = 0

    def thresholds(self) -> dict[str, float]:
        """The limits as a trigger records them."""
        return {
            "z": self.z,
            "consecutive_steps": float(self.consecutive_steps),
            "single_z": self.single_z,
        }


class TriggerMachine:
    """Folds indices; fires at most one trigger a step. Its state restores bit-equal."""

    def __init__(self, rules: TriggerRules, run_uid: str) -> None:
        self.rules, self.run_uid = rules, run_uid
        self._above = 0
        self._onset: int | None = None
        self._quiet_until = 0
        self._validations: list[float] = []
        self._worse = 0
        self._events: list[int] = []

    def fold(
        self,
        index: Index,
        *,
        finite: bool,
        validation_loss: float | None = None,
        spiked: bool = False,
    ) -> Trigger | None:
        """The trigger of this step, or None."""
        departed = index.z > _DEPARTED_Z or not finite
        if not departed:
            self._onset = None
        elif self._onset is None:
            self._onset = index.step
        self._above = self._above + 1 if index.z > self.rules.z else 0
        rule = self._rule(index, finite=finite)
        slow = self._slow_rules(index.step, validation_loss, spiked=spiked)
        rule = rule or slow
        if rule is None or index.step < self._quiet_until:
            return None
        onset = self._onset if self._onset is not None else index.step
        self._quiet_until = index.step + self.rules.cooldown_steps
        self._above = 0
        return Trigger(
            run_uid=self.run_uid,
            epoch=index.epoch,
            step=index.step,
            onset_step=onset,
            rule=rule,
            z=index.z,
            index=index.index,
            components=dict(index.components),
            thresholds=self.rules.thresholds(),
        )

    def over(self, z: float) -> bool:
        """Whether a z is over the consecutive threshold."""
        return z > self.rules.z

    def quiet(self, until_step: int) -> None:
        """No trigger before that step: after a collapse, and after a branch."""
        self._quiet_until = max(self._quiet_until, until_step)
        self._above, self._onset = 0, None

    def _rule(self, index: Index, *, finite: bool) -> TriggerRule | None:
        every = self.rules.force_every_steps
        if not finite:
            return TriggerRule.NON_FINITE
        if every and index.step > 0 and index.step % every == 0:
            return TriggerRule.FORCED
        if not index.ready:
            return None
        if index.z > self.rules.single_z:
            return TriggerRule.SINGLE
        if self._above >= self.rules.consecutive_steps:
            return TriggerRule.CONSECUTIVE
        return None

    def _slow_rules(
        self, step: int, validation_loss: float | None, *, spiked: bool
    ) -> TriggerRule | None:
        if validation_loss is not None and math.isfinite(validation_loss):
            worse = exceeds_trend(self._validations, validation_loss, _VALIDATION_SIGMAS)
            self._worse = self._worse + 1 if worse else 0
            if not worse:
                self._validations = [*self._validations, validation_loss][-_VALIDATIONS:]
            if self._worse >= 2:
                self._worse = 0
                return TriggerRule.VALIDATION_REGRESSION
        if spiked:
            self._events = [one for one in self._events if one > step - 2 * _RATE_WINDOW]
            self._events.append(step)
            if rate_rose(self._events, step):
                return TriggerRule.INSTABILITY_RATE
        return None

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "above": self._above,
            "onset": self._onset,
            "quiet_until": self._quiet_until,
            "validations": list(self._validations),
            "worse": self._worse,
            "events": list(self._events),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._above, self._onset = int(state["above"]), state["onset"]
        self._quiet_until, self._worse = int(state["quiet_until"]), int(state["worse"])
        self._validations = [float(v) for v in state["validations"]]
        self._events = [int(e) for e in state["events"]]


def exceeds_trend(history: Sequence[float], value: float, sigmas: float) -> bool:
    """Whether a validation stands above the linear trend of the last eight by more than ``sigmas``
    of their sd about it. Silent with fewer than eight.
    """
    n = len(history)
    if n < _VALIDATIONS:
        return False
    mean_x, mean_y = (n - 1) / 2, math.fsum(history) / n
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in enumerate(history))
    slope /= math.fsum((x - mean_x) ** 2 for x in range(n))
    rest = [y - (mean_y + slope * (x - mean_x)) for x, y in enumerate(history)]
    sd = math.sqrt(math.fsum(r * r for r in rest) / (n - 2))
    return value > mean_y + slope * (n - mean_x) + sigmas * sd


def rate_rose(events: Sequence[int], step: int) -> bool:
    """Whether the instability rate of the last 10,000 steps is at least 25 % above that of the
    10,000 before, and by an exact Poisson test (conditional binomial, p < .01) not by chance.
    """
    if step < 2 * _RATE_WINDOW:
        return False
    now = sum(1 for one in events if one > step - _RATE_WINDOW)
    before = len(events) - now
    if now < _RATE_RISE * max(before, 1):
        return False
    total = now + before
    tail = math.fsum(math.comb(total, k) for k in range(now, total + 1)) / 2.0**total
    return tail < _RATE_P
