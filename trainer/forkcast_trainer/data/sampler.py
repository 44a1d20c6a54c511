"""Every window once per data pass, in a seeded order whose whole state is three integers.

The order is a permutation computed on demand: a four-round Feistel network over the smallest
even-bit domain that holds the windows, walked until it lands inside (cycle walking; Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is shuffled or stored, so a fork
of the state sees exactly the batches the original would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

_MASK = (1 << 64) - 1
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class SamplerState:
    """seed: of the order. epoch: data passes finished. position: windows taken of this pass."""

    seed: NonNegativeInt
    epoch: NonNegativeInt = 0
    position: NonNegativeInt = 0


class Sampler:
    """Draws window ids in [0, windows)."""

    def __init__(self, windows: int, state: SamplerState) -> None:
        if windows < 1:
            raise ValueError(f"sampler: needs at least one window; got {windows}")
        self.windows = windows
        self.state = state

    def take(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` window ids; a pass that ends is followed by the next."""
        parts, left = [], count
        while left:
            if self.state.position >= self.windows:
                self.state = replace(self.state, epoch=self.state.epoch + 1, position=0)
            first = self.state.position
            last = min(first + left, self.windows)
            places = np.arange(first, last, dtype=np.uint64)
            parts.append(permuted(places, self.windows, self.state.seed, self.state.epoch))
            self.state = replace(self.state, position=last)
            left -= last - first
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def skip(self, count: int) -> None:
        """Pass over ``count`` windows."""
        passes, position = divmod(self.state.position + count, self.windows)
        self.state = replace(self.state, epoch=self.state.epoch + passes, position=position)

    def reorder(self, seed: int) -> None:
        """Continue at the same position of another order."""
        self.state = replace(self.state, seed=seed)

    def passes(self) -> list[float]:
        """How often the text has been seen."""
        return [self.state.epoch + self.state.position / self.windows]


def mixed(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014)."""
    return int(mixed_all(np.array([value & _MASK], dtype=np.uint64))[0])


def mixed_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mixed` of each."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(places: NDArray[np.uint64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each place goes in the permutation of [0, size) named by (seed, epoch)."""
    half = np.uint64(max(((size - 1).bit_length() + 1) // 2, 1))
    low = (np.uint64(1) << half) - np.uint64(1)
    key = mixed(mixed(seed) ^ epoch)
    keys = [np.uint64(key ^ (number << 56)) for number in range(_ROUNDS)]
    found, walking = places.copy(), np.arange(len(places))
    while len(walking):
        value = found[walking]
        left, right = value >> half, value & low
        for one in keys:
            left, right = right, left ^ (mixed_all(right ^ one) & low)
        found[walking] = (left << half) | right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)
