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
_RATE_RISE = 1.25
_RATE_P = 0.01
#: Events are counted by blocks of so many steps; ten blocks, the last one as far as it goes, are compared
#: with the ten before.
_BLOCK, _BLOCKS = 1000, 10


class Validations:
    """Folds validation losses; its state restores bit-equal."""

    def __init__(self) -> None:
        self._accepted: list[float] = []
        self._worse: list[float] = []

    def fold(self, loss: float) -> bool:
        """Whether this is the second worse validation in a row. Worse ones enter the history only
        then: after the trigger their level is known, and it must not fire again at each of them.
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
    """Counts events and the steps that nobody saw, by blocks of steps; its state restores bit-equal."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}  # by block
        self._missing: dict[int, int] = {}
        self._last = -1  # step of the last event

    def missed(self, first: int, last: int) -> None:
        """Steps that left no row, first to last."""
        newest = last // _BLOCK
        for block in range(max(first // _BLOCK, newest - 2 * _BLOCKS), newest + 1):
            begin, end = block * _BLOCK, (block + 1) * _BLOCK
            found = min(last + 1, end) - max(first, begin)
            self._missing[block] = min(self._missing.get(block, 0) + found, _BLOCK)
        self._forget(newest)

    def fold(self, step: int, onset: int) -> bool:
        """An event at ``step`` of a departure since ``onset``; whether events have become more frequent. Events
        less than MERGE_STEPS apart are the same, and so are all events of a departure.
        """
        if self._last >= 0 and (onset <= self._last or step - self._last < MERGE_STEPS):
            return False
        self._last, newest = step, step // _BLOCK
        self._events[newest] = self._events.get(newest, 0) + 1
        self._forget(newest)
        now, before = newest - _BLOCKS, newest - 2 * _BLOCKS  # the last blocks that are of neither
        if before < -1:
            return False
        return rate_rose(
            events=_of(self._events, now, newest),
            seen=(_BLOCKS - 1) * _BLOCK + step % _BLOCK + 1 - _of(self._missing, now, newest),
            events_before=_of(self._events, before, now),
            seen_before=_BLOCKS * _BLOCK - _of(self._missing, before, now),
        )

    def _forget(self, newest: int) -> None:
        oldest = newest - 2 * _BLOCKS
        self._events = {block: n for block, n in self._events.items() if block > oldest}
        self._missing = {block: n for block, n in self._missing.items() if block > oldest}

    def state(self) -> Mapping[str, object]:
        """By blocks."""
        return {
            "events": {str(block): n for block, n in self._events.items()},
            "missing": {str(block): n for block, n in self._missing.items()},
            "last": self._last,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._events = {int(block): int(n) for block, n in state["events"].items()}
        self._missing = {int(block): int(n) for block, n in state["missing"].items()}
        self._last = int(state["last"])


def _of(blocks: Mapping[int, int], after: int, to: int) -> int:
    """The sum of the blocks in (after, to]."""
    return sum(n for block, n in blocks.items() if after < block <= to)


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


def rate_rose(*, events: int, seen: int, events_before: int, seen_before: int) -> bool:
    """Whether the instability rate of the last 10,000 steps is at least 25 % above that of the
    10,000 before, and by an exact Poisson test (conditional binomial, p < .01) not by chance.

    seen: how many of those steps left a row; a window of which less than half was seen judges nothing.
    """
    if min(seen, seen_before) < _BLOCKS * _BLOCK // 2:
        return False
    if events / seen < _RATE_RISE * max(events_before, 1) / seen_before:
        return False
    chance = seen / (seen + seen_before)
    return _binomial_tail(events, events + events_before, chance) < _RATE_P


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
