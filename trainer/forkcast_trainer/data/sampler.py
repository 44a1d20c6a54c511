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

_MASK = (1 << 64) - 1
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class SamplerState:
    """seed: of the order. epoch: data passes finished. position: windows taken of this pass."""

    seed: int
    epoch: int = 0
    position: int = 0


class Sampler:
    """Draws window ids in [0, windows)."""

    def __init__(self, windows: int, state: SamplerState) -> None:
        if windows < 1:
            raise ValueError(f"sampler: needs at least one window; got {windows}")
        self.windows = windows
        self.state = state

    def take(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` window ids; a pass that ends is followed by the next."""
        taken = np.empty(count, dtype=np.int64)
        for index in range(count):
            if self.state.position >= self.windows:
                self.state = replace(self.state, epoch=self.state.epoch + 1, position=0)
            taken[index] = permuted(
                self.state.position, self.windows, self.state.seed, self.state.epoch
            )
            self.state = replace(self.state, position=self.state.position + 1)
        return taken

    def skip(self, count: int) -> None:
        """Pass over ``count`` windows."""
        passes, position = divmod(self.state.position + count, self.windows)
        self.state = replace(self.state, epoch=self.state.epoch + passes, position=position)

    def reorder(self, seed: int) -> None:
        """Continue at the same position of another order."""
        self.state = replace(self.state, seed=seed)


def _mixed(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """Where ``index`` goes in the permutation of [0, size) named by (seed, epoch)."""
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    low = (1 << half) - 1
    key = _mixed(_mixed(seed) ^ epoch)
    value = index
    while True:
        left, right = value >> half, value & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key ^ (number << 56) ^ right) & low)
        value = (left << half) | right
        if value < size:
            return value
