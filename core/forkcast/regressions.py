"""Triggers of slower measurements: validation losses above their trend, events more frequent than they were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from forkcast.records import Tier
from forkcast.robust import usable
from forkcast.spikes import MERGE_STEPS

#: What is higher by less is no departure of a run, however quiet it was, nats/token.
LEAST_SIZE: Final = 0.06

_VALIDATIONS = 8
#: Steps between two that count. The rule is made for one every some hundred steps: a log with one in each
#: row would have two in a row that are worse by chance every 200.
_APART: Final = 10
_EVENT_SIGMAS = 1.5
_EVENT_RUNNING = 2
#: Validations running, and by how many sigmas each of them is worse, that are beyond chance: a sigma of
#: eight is a rough one, and a history that is flat by chance makes all that follow look worse.
_BEYOND_CHANCE = {2: 4.0, 3: 3.0}
_RATE_RISE = 1.25
_RATE_P = 0.01
#: Events are counted by blocks of so many steps; ten blocks, the last one as far as it goes, are compared
#: with the ten before.
_BLOCK, _BLOCKS = 1000, 10


@dataclass(frozen=True, slots=True)
class Worse:
    """Validations above their trend. onset: step of the first of them. running: how many there were. excess: how
    far the last stands above, nats/token. tier: BRANCH once they are confirmed.
    """

    onset: int
    running: int
    excess: float
    tier: Tier


class Validations:
    """Folds validation losses; its state restores bit-equal.

    The second that is worse in a row is an event. It asks for a branch, then or at one of those that
    follow, if it stands more than LEAST_SIZE above the trend and is confirmed: all of them are beyond
    chance, or the training loss has departed, too.
    """

    def __init__(self) -> None:
        self._accepted: list[float] = []
        self._worse: list[float] = []
        self._onset = 0
        self._counted = -_APART  # step of the last that counted

    def fold(self, step: int, loss: float, *, agrees: bool) -> Worse | None:
        """What this one comes to, if it is more than what was told of those before. agrees: whether a signal of
        the training loss has departed. Worse ones enter the history only after a branch was asked for or
        eight of them: their level is known then, and it must not fire again at each of them.
        """
        if not usable(loss) or 0 <= step - self._counted < _APART:
            return None
        self._counted = step
        if not exceeds_trend(self._accepted[-_VALIDATIONS:], loss, _EVENT_SIGMAS):
            self._accept([loss])
            return None
        if not self._worse:
            self._onset = step
        self._worse.append(loss)
        running = len(self._worse)
        if running < _EVENT_RUNNING:
            return None
        limit, sigma = self._trend()
        excess, least = loss - limit, min(self._worse) - limit
        by_chance = least <= _BEYOND_CHANCE[min(running, max(_BEYOND_CHANCE))] * sigma
        confirmed = excess > LEAST_SIZE and (agrees or not by_chance)
        if confirmed or running == _VALIDATIONS:
            self._accept(self._worse)
        if confirmed:
            return Worse(self._onset, running, excess, Tier.BRANCH)
        return (
            Worse(self._onset, running, excess, Tier.EVENT) if running == _EVENT_RUNNING else None
        )

    def _accept(self, losses: list[float]) -> None:
        self._accepted = [*self._accepted, *losses][-2 * _VALIDATIONS :]
        self._worse = []

    def _trend(self) -> tuple[float, float]:
        """What a validation must exceed; sigma of the last eight, or of the eight before if that is more."""
        limit, sigma = trend(self._accepted[-_VALIDATIONS:])
        before = self._accepted[:-_VALIDATIONS]
        return limit, max(sigma, trend(before)[1]) if len(before) == _VALIDATIONS else sigma

    def state(self) -> list[list[float]]:
        """The accepted and the worse ones, the first step of those, and that of the last that counted."""
        return [list(self._accepted), list(self._worse), [self._onset, self._counted]]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Become what `state` was taken from."""
        self._accepted, self._worse = ([float(value) for value in one] for one in state[:2])
        self._onset, self._counted = (int(step) for step in state[2])


class EventRate:
    """Counts events and the steps that nobody saw, by blocks of steps; its state restores bit-equal."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}  # by block
        self._missing: dict[int, int] = {}
        self._last = -1  # step of the last event
        self._told = -_BLOCKS  # block of the last rise

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
        less than MERGE_STEPS apart are the same, and so are all events of a departure. A rise is told once: the
        next is one against ten blocks that have had it.
        """
        if self._last >= 0 and (onset <= self._last or step - self._last < MERGE_STEPS):
            return False
        self._last, newest = step, step // _BLOCK
        self._events[newest] = self._events.get(newest, 0) + 1
        self._forget(newest)
        now, before = newest - _BLOCKS, newest - 2 * _BLOCKS  # the last blocks that are of neither
        if before < -1 or newest - self._told < _BLOCKS:
            return False
        rose = rate_rose(
            events=_of(self._events, now, newest),
            seen=(_BLOCKS - 1) * _BLOCK + step % _BLOCK + 1 - _of(self._missing, now, newest),
            events_before=_of(self._events, before, now),
            seen_before=_BLOCKS * _BLOCK - _of(self._missing, before, now),
        )
        if rose:
            self._told = newest
        return rose

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
            "told": self._told,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._events = {int(block): int(n) for block, n in state["events"].items()}
        self._missing = {int(block): int(n) for block, n in state["missing"].items()}
        self._last, self._told = int(state["last"]), int(state["told"])


def _of(blocks: Mapping[int, int], after: int, to: int) -> int:
    """The sum of the blocks in (after, to]."""
    return sum(n for block, n in blocks.items() if after < block <= to)


def exceeds_trend(history: Sequence[float], value: float, sigmas: float) -> bool:
    """Whether a validation is worse: above both the linear trend of the last eight and the last of
    them by more than ``sigmas`` of their sd about that trend. Silent with fewer than eight.

    A healthy curve flattens, and so leaves any straight line upwards by nearly three of these
    sigmas at every validation; only one that has also risen has got worse.
    """
    if len(history) < _VALIDATIONS:
        return False
    limit, sigma = trend(history)
    return value > limit + sigmas * sigma


def trend(history: Sequence[float]) -> tuple[float, float]:
    """The linear trend of three or more values carried on by one, or the last of them if that is higher;
    their sd about it.
    """
    n = len(history)
    mean_x, mean_y = (n - 1) / 2, math.fsum(history) / n
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in enumerate(history))
    slope /= math.fsum((x - mean_x) ** 2 for x in range(n))
    rest = [y - (mean_y + slope * (x - mean_x)) for x, y in enumerate(history)]
    sd = math.sqrt(math.fsum(r * r for r in rest) / (n - 2))
    return max(mean_y + slope * (n - mean_x), history[-1]), sd


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
