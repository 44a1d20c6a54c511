"""Which window comes next where there are several texts: each is drawn by its weight, and has a pass of its own.

Of which text the n-th window is, is a hash of seed and n alone; the text's own sampler says which of its
windows. So a mixture's whole state is a seed, a count, and two integers for each text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from forkcast_trainer.data.sampler import Sampler, SamplerState, mixed, mixed_all

_CHUNK: Final = 1 << 16
#: Of a double's mantissa: a share is a whole number of this many parts on every machine.
_BITS: Final = 53


@dataclass(frozen=True, slots=True)
class Pass:
    """epoch: data passes of a text that are finished. position: windows taken of this pass."""

    epoch: NonNegativeInt
    position: NonNegativeInt


@dataclass(frozen=True, slots=True)
class MixtureState:
    """seed: of the choice of texts and of their orders. drawn: windows so far. passes: of each text."""

    seed: NonNegativeInt
    drawn: NonNegativeInt
    passes: tuple[Pass, ...]


class Mixture:
    """Draws ids of windows that are numbered through over the texts."""

    def __init__(self, windows: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """windows: of each text. weights: of each text, > 0, of any sum."""
        if len(windows) != len(weights) or not windows:
            raise ValueError(f"mixture: {len(windows)} texts, {len(weights)} weights")
        self.windows = tuple(windows)
        self._firsts = np.cumsum([0, *windows[:-1]], dtype=np.int64)
        total = math.fsum(weights)
        sums = itertools.accumulate(weights)
        ends = [min(int(one / total * (1 << _BITS)), 1 << _BITS) for one in sums]
        self._ends = np.array([end << (64 - _BITS) for end in ends[:-1]], dtype=np.uint64)
        self.state = MixtureState(seed, 0, tuple(Pass(0, 0) for _ in windows))

    def take(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` window ids."""
        texts = self._texts(count)
        taken, passes = np.empty(count, dtype=np.int64), list(self.state.passes)
        for number in np.unique(texts).tolist():
            places, sampler = np.flatnonzero(texts == number), self._sampler(number)
            taken[places] = sampler.take(len(places)) + self._firsts[number]
            passes[number] = Pass(sampler.state.epoch, sampler.state.position)
        self._move(count, passes)
        return taken

    def skip(self, count: int) -> None:
        """Pass over ``count`` windows."""
        while count:
            chunk = min(count, _CHUNK)
            passes = list(self.state.passes)
            found = np.bincount(self._texts(chunk), minlength=len(passes)).tolist()
            for number, many in enumerate(found):
                sampler = self._sampler(number)
                sampler.skip(many)
                passes[number] = Pass(sampler.state.epoch, sampler.state.position)
            self._move(chunk, passes)
            count -= chunk

    def reorder(self, seed: int) -> None:
        """Continue at the same position of another order and another choice of texts."""
        self.state = replace(self.state, seed=seed)

    def passes(self) -> list[float]:
        """Of each text, how often it has been seen."""
        return [one.epoch + one.position / of for one, of in zip(self.state.passes, self.windows)]  # noqa: B905  one for each

    def _texts(self, count: int) -> NDArray[np.int64]:
        """The number of the text of each of the next ``count`` windows."""
        places = np.arange(self.state.drawn, self.state.drawn + count, dtype=np.uint64)
        drawn = mixed_all(places ^ np.uint64(mixed(~self.state.seed)))
        return np.searchsorted(self._ends, drawn, side="right").astype(np.int64)

    def _sampler(self, number: int) -> Sampler:
        one, seed = self.state.passes[number], mixed(self.state.seed + number)
        return Sampler(self.windows[number], SamplerState(seed, one.epoch, one.position))

    def _move(self, count: int, passes: Sequence[Pass]) -> None:
        self.state = replace(self.state, drawn=self.state.drawn + count, passes=tuple(passes))


def sampler_of(windows: Sequence[int], weights: Sequence[float], seed: int) -> Sampler | Mixture:
    """The sampler of a run's texts; that of a single text has no choice to make."""
    if len(windows) == 1:
        return Sampler(windows[0], SamplerState(seed))
    return Mixture(windows, weights, seed)
