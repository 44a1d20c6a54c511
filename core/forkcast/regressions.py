"""Triggers of slower measurements: validation losses above their trend, events more frequent than they were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from forkcast.robust import usable
from forkcast.spikes import MERGE_STEPS

_VALIDATIONS = 8
_VALIDATION_SIGMAS = 1.5
_WORSE_IN_A_ROW = 2
_RATE_WINDOW = 10_000
_RATE_RISE = 1.25
_RATE_P = 0.01
#: So many events and gaps are remembered at most.
_MOST_EVENTS, _MOST_GAPS = 64, 16


class Validations:
    """Folds validation losses; its state restores bit-equal."""

    def __init__(self) -> None:
        self._accepted: list[float] = []
        self._worse: list[float] = []

    def fold(self, loss: float) -> bool:
        """Whether this is the second worse validation in a row. Worse ones enter the history only
        then: after the trigger their level is known, and it must not fire again for ever.
        """
        if not usable(loss):
            return False
        if not exceeds_trend(self._accepted, loss, _VALIDATION_SIGMAS):
            self._accepted = [*self._accepted, loss][-_VALIDATIONS:]
            self._worse = []
            return False
        self._worse.append(loss)
        if len(self._worse) < _WORSE_IN_A_ROW:
            return False
        self._accepted = [*self._accepted, *self._worse][-_VALIDATIONS:]
        self._worse = []
        return True

    def state(self) -> list[list[float]]:
        """The accepted and the worse ones."""
        return [list(self._accepted), list(self._worse)]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Become what `state` was taken from."""
        self._accepted, self._worse = ([float(value) for value in one] for one in state)


class EventRate:
    """Counts events and the steps that nobody saw; its state restores bit-equal."""

    def __init__(self) -> None:
        self._events: list[int] = []
        self._missing: list[tuple[int, int]] = []
        self._forgotten = -1  # the last event that there was no place for

    def missed(self, first: int, last: int) -> None:
        """Steps that left no row, first to last."""
        self._missing.append((first, last))
        if len(self._missing) > _MOST_GAPS:
            # what lies between the two oldest counts as missing, too: less to compare, nothing invented
            (start, _), (_, end) = self._missing[:2]
            self._missing[:2] = [(start, end)]

    def fold(self, step: int, onset: int) -> bool:
        """An event at ``step`` of a departure since ``onset``; whether events have become more frequent. Events
        less than MERGE_STEPS apart are the same, and so are all events of a departure.
        """
        last = self._events[-1] if self._events else None
        if last is not None and (onset <= last or step - last < MERGE_STEPS):
            return False
        oldest = step - 2 * _RATE_WINDOW
        self._events = [*(event for event in self._events if event > oldest), step]
        if len(self._events) > _MOST_EVENTS:
            self._forgotten = self._events.pop(0)
        self._missing = [gap for gap in self._missing if gap[1] > oldest]
        return self._forgotten <= oldest and rate_rose(self._events, step, self._missing)

    def state(self) -> Mapping[str, object]:
        """Events and gaps."""
        return {
            "events": list(self._events),
            "missing": [list(gap) for gap in self._missing],
            "forgotten": self._forgotten,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._events = [int(step) for step in state["events"]]
        self._missing = [(int(first), int(last)) for first, last in state["missing"]]
        self._forgotten = int(state["forgotten"])


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
