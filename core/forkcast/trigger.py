"""Index to trigger: thresholds, cooldown, and the regression rules on slower measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkcast.records import Index, Trigger, TriggerRule
from forkcast.robust import usable
from forkcast.spikes import MERGE_STEPS

_DEPARTED_Z = 1.0  # the departure began at the first step of the present run above this z
_VALIDATIONS = 8
_VALIDATION_SIGMAS = 1.5
_WORSE_IN_A_ROW = 2
_RATE_WINDOW = 10_000
_RATE_RISE = 1.25
_RATE_P = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRules:
    """z at ``consecutive_steps`` in a row, or ``single_z`` once; none within ``cooldown_steps`` of
    the last trigger or of a new epoch. force_every_steps: 0 = off.
    calm_steps: so many steps without a departure in an epoch >= 1 give a Calm trigger; 0 = off.
    """

    z: float = 2.5
    consecutive_steps: int = 3
    single_z: float = 3.2
    cooldown_steps: int = 200
    warmup_steps: int = 200
    force_every_steps: int = 0
    calm_steps: int = 1000

    def thresholds(self) -> dict[str, float]:
        """The limits as a trigger records them."""
        return {
            "z": self.z,
            "consecutive_steps": float(self.consecutive_steps),
            "single_z": self.single_z,
            "calm_steps": float(self.calm_steps),
        }


class TriggerMachine:
    """Folds indices; fires at most one trigger a step. Its state restores bit-equal.

    A gap resets the consecutive count and the onset; the index rules then stay silent for as many
    steps as are missing, at most the warm-up: no trigger from a partial window.

    A Calm trigger opens no cooldown: it says that nothing is wrong, and must hide nothing that is.
    """

    def __init__(self, rules: TriggerRules, run_uid: str) -> None:
        self.rules, self.run_uid = rules, run_uid
        self._above = 0
        self._onset: int | None = None
        self._quiet_until = 0
        self._validations: list[float] = []
        self._worse_values: list[float] = []
        self._events: list[int] = []
        self._flagged: int | None = None
        self._step: int | None = None
        self._blind_until = 0
        self._missing: list[tuple[int, int]] = []
        self._epoch = 0
        self._calm = 0

    def fold(
        self,
        index: Index,
        *,
        finite: bool,
        validation_loss: float | None = None,
        spiked: bool = False,
    ) -> Trigger | None:
        """The trigger of this step, or None."""
        self._note_gap(index.step)
        departed = index.z > _DEPARTED_Z or not finite
        if not departed:
            self._onset = None
        elif self._onset is None:
            self._onset = index.step
        self._above = self._above + 1 if index.z > self.rules.z else 0
        rule = self._rule(index, finite=finite)
        slow = self._slow_rules(index.step, validation_loss, spiked=spiked)
        rule = rule or slow
        calm_is_due = self._count_calm(index, rule, spiked=spiked)
        if index.step < self._quiet_until:
            return None
        if rule is not None:
            onset = self._onset if self._onset is not None else index.step
            self._quiet_until = index.step + self.rules.cooldown_steps
            self._above = 0
            return self._trigger(index, rule, onset)
        if calm_is_due:
            self._calm = 0
            return self._trigger(index, TriggerRule.CALM, index.step)
        return None

    def _trigger(self, index: Index, rule: TriggerRule, onset: int) -> Trigger:
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
        if not index.ready or index.step < self._blind_until:
            return None
        if index.z > self.rules.single_z:
            return TriggerRule.SINGLE
        if self._above >= self.rules.consecutive_steps:
            return TriggerRule.CONSECUTIVE
        return None

    def _count_calm(self, index: Index, rule: TriggerRule | None, *, spiked: bool) -> bool:
        """Count this step; whether the epoch has been calm for long enough. What breaks a calm does
        so in a cooldown too; a forced trigger is no sign of trouble.
        """
        if index.epoch != self._epoch:
            self._epoch, self._calm = index.epoch, 0
        judged = index.ready and index.step >= self._blind_until
        trouble = spiked or index.z > self.rules.z or rule not in (None, TriggerRule.FORCED)
        lasts = index.epoch > 0 and judged and not trouble
        self._calm = self._calm + 1 if lasts else 0
        return 0 < self.rules.calm_steps <= self._calm

    def _slow_rules(
        self, step: int, validation_loss: float | None, *, spiked: bool
    ) -> TriggerRule | None:
        if validation_loss is not None and self._validated(validation_loss):
            return TriggerRule.VALIDATION_REGRESSION
        if spiked:
            begins = self._flagged is None or step - self._flagged >= MERGE_STEPS
            self._flagged = step
            if begins:
                oldest = step - 2 * _RATE_WINDOW
                self._events = [*(one for one in self._events if one > oldest), step]
                self._missing = [gap for gap in self._missing if gap[1] > oldest]
                if rate_rose(self._events, step, self._missing):
                    return TriggerRule.INSTABILITY_RATE
        return None

    def _validated(self, loss: float) -> bool:
        """Whether this is the second worse validation in a row. Worse ones enter the history only
        then: after the trigger their level is known, and it must not fire again for ever.
        """
        if not usable(loss):
            return False
        if not exceeds_trend(self._validations, loss, _VALIDATION_SIGMAS):
            self._validations = [*self._validations, loss][-_VALIDATIONS:]
            self._worse_values = []
            return False
        self._worse_values.append(loss)
        if len(self._worse_values) < _WORSE_IN_A_ROW:
            return False
        self._validations = [*self._validations, *self._worse_values][-_VALIDATIONS:]
        self._worse_values = []
        return True

    def _note_gap(self, step: int) -> None:
        if self._step is not None and step > self._step + 1:
            missing = step - self._step - 1
            self._missing.append((self._step + 1, step - 1))
            self._above, self._onset, self._calm = 0, None, 0
            self._blind_until = step + min(missing, self.rules.warmup_steps)
        self._step = step

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "above": self._above,
            "onset": self._onset,
            "quiet_until": self._quiet_until,
            "validations": list(self._validations),
            "worse": list(self._worse_values),
            "events": list(self._events),
            "flagged": self._flagged,
            "step": self._step,
            "blind_until": self._blind_until,
            "missing": [list(gap) for gap in self._missing],
            "epoch": self._epoch,
            "calm": self._calm,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._above, self._onset = int(state["above"]), state["onset"]
        self._quiet_until = int(state["quiet_until"])
        self._worse_values = [float(v) for v in state["worse"]]
        self._flagged, self._step = state["flagged"], state["step"]
        self._blind_until = int(state["blind_until"])
        self._missing = [(int(a), int(b)) for a, b in state["missing"]]
        self._validations = [float(v) for v in state["validations"]]
        self._events = [int(e) for e in state["events"]]
        self._epoch, self._calm = int(state["epoch"]), int(state["calm"])


def exceeds_trend(history: Sequence[float], value: float, sigmas: float) -> bool:
    """Whether a validation is worse: above both the linear trend of the last eight and the last of
    them by more than ``sigmas`` of their sd about that trend. Silent with fewer than eight.

    A healthy curve flattens, and so leaves any straight line upwards by nearly three of these
    sigmas at every validation; only one that has also risen has got worse.
    """
    n = len(history)
    if n < _VALIDATIONS:
        return False
    mean_x, mean_y = (n - 1) / 2, math.fsum(history) / n
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in enumerate(history))
    slope /= math.fsum((x - mean_x) ** 2 for x in range(n))
    rest = [y - (mean_y + slope * (x - mean_x)) for x, y in enumerate(history)]
    sd = math.sqrt(math.fsum(r * r for r in rest) / (n - 2))
    return value > max(mean_y + slope * (n - mean_x), history[-1]) + sigmas * sd


def rate_rose(events: Sequence[int], step: int, missing: Sequence[tuple[int, int]] = ()) -> bool:
    """Whether the instability rate of the last 10,000 steps is at least 25 % above that of the
    10,000 before, and by an exact Poisson test (conditional binomial, p < .01) not by chance.

    missing: steps never seen, as (first, last); a window of which less than half was seen judges
    nothing.
    """
    if step < 2 * _RATE_WINDOW:
        return False
    start, middle = step - 2 * _RATE_WINDOW, step - _RATE_WINDOW
    seen_now = _RATE_WINDOW - _overlap(missing, middle, step)
    seen_before = _RATE_WINDOW - _overlap(missing, start, middle)
    if min(seen_now, seen_before) < _RATE_WINDOW // 2:
        return False
    now = sum(1 for one in events if one > middle)
    before = sum(1 for one in events if start < one <= middle)
    if now / seen_now < _RATE_RISE * max(before, 1) / seen_before:
        return False
    return _binomial_tail(now, now + before, seen_now / (seen_now + seen_before)) < _RATE_P


def _overlap(missing: Sequence[tuple[int, int]], after: int, to: int) -> int:
    """How many of the steps in (after, to] are missing."""
    return sum(max(0, min(last, to) - max(first, after + 1) + 1) for first, last in missing)


def _binomial_tail(at_least: int, total: int, chance: float) -> float:
    """P(X >= at_least) for X ~ Binomial(total, chance), in logarithms: totals reach thousands."""
    up, down = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(total + 1)
    return math.fsum(
        math.exp(
            whole - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * up + (total - k) * down
        )
        for k in range(at_least, total + 1)
    )
