"""Window ids to token batches, through the stressors that are switched on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.data.sampler import Sampler
from forkcast_trainer.data.tokens import TokenSlice
from forkcast_trainer.stressors.base import DataStressor

Tokens = NDArray[np.int64]


def window_count(tokens: TokenSlice, sequence_length: int) -> int:
    """How many windows of sequence_length + 1 ids (one id shared) the tokens hold."""
    return (tokens.count - 1) // sequence_length


class Batches:
    """Batches of the training text. What a step sees depends on the sampler's state and the step
    alone, so every fork of a state sees the same.
    """

    def __init__(
        self, tokens: TokenSlice, sequence_length: int, stressors: Sequence[DataStressor]
    ) -> None:
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.windows = window_count(tokens, sequence_length)
        self._stressors = stressors

    def batch(self, step: int, sampler: Sampler, count: int) -> Tokens:
        """[count, length + 1] ids of one micro-batch; length is 4x where LongSequence strikes."""
        ids = sampler.take(count)
        for stressor in self._stressors:
            ids = stressor.windows(step, ids, self.windows)
        batch = self.read(ids, self.sequence_length)
        for stressor in self._stressors:
            batch = stressor.batch(step, batch, self)
        return batch

    def read(self, ids: NDArray[np.int64], length: int) -> Tokens:
        """[len(ids), length + 1] ids that begin at the windows' first ids; the last windows are
        shifted back so that a longer read stays inside the text.
        """
        text = self.tokens.array
        last = max(self.tokens.count - length - 1, 0)
        starts = np.minimum(ids * self.sequence_length, last)
        return np.stack([text[start : start + length + 1] for start in starts]).astype(np.int64)


class ValidationBatches(Sequence[Tokens]):
    """Fixed micro-batches spread evenly over the held-out text, read from its file when they are
    looked at: a process holds one of them at a time.
    """

    def __init__(
        self, tokens: TokenSlice, sequence_length: int, micro_batch: int, most: int
    ) -> None:
        """Up to ``most`` micro-batches, at least one."""
        self._text = Batches(tokens, sequence_length, ())
        self._windows = window_count(tokens, sequence_length)
        self._wanted = min(self._windows, micro_batch * most)
        self._length = sequence_length
        self._count = max(1, -(-self._wanted // micro_batch))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Tokens: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Tokens]: ...
    def __getitem__(self, number: int | slice) -> Tokens | Sequence[Tokens]:
        """[windows, length + 1] ids of a micro-batch; sizes differ by at most one."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        size, larger = divmod(self._wanted, self._count)
        first = number * size + min(number, larger)
        last = first + size + (number < larger)
        ids = (np.arange(first, last, dtype=np.int64) * self._windows) // self._wanted
        return self._text.read(ids, self._length)
