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


class Windows:
    """The windows of one text or of several, numbered through from the first text's first; none lies
    in two texts.
    """

    def __init__(self, texts: Sequence[TokenSlice], sequence_length: int) -> None:
        self.texts, self.sequence_length = texts, sequence_length
        #: Of each text.
        self.counts = [window_count(text, sequence_length) for text in texts]
        self._firsts = np.cumsum([0, *self.counts])
        self.windows = int(self._firsts[-1])

    def read(self, ids: NDArray[np.int64], length: int) -> Tokens:
        """[len(ids), length + 1] ids that begin at the windows' first ids; the last windows of a text
        are shifted back so that a longer read stays inside it. Shorter if a text is.
        """
        numbers = np.searchsorted(self._firsts, ids, side="right") - 1
        length = min(length, *(self.texts[number].count - 1 for number in set(numbers.tolist())))
        batch = np.empty((len(ids), length + 1), dtype=np.int64)
        within = (ids - self._firsts[numbers]) * self.sequence_length
        for row, number, start in zip(batch, numbers.tolist(), within.tolist(), strict=True):
            text = self.texts[number]
            first = min(start, text.count - length - 1)
            row[:] = text.array[first : first + length + 1]
        return batch

    def first_ids(self, count: int) -> NDArray[np.generic]:
        """Up to ``count`` ids from the beginnings of the texts, as many of each."""
        share = max(1, count // len(self.texts))
        return np.concatenate([text.array[:share] for text in self.texts])


class Batches:
    """Batches of the training text. What a step sees depends on the sampler's state and the step
    alone, so every fork of a state sees the same.
    """

    def __init__(self, text: Windows, stressors: Sequence[DataStressor]) -> None:
        self.text, self._stressors = text, stressors

    def draw(self, step: int, sampler: Sampler, count: int) -> NDArray[np.int64]:
        """The windows of a micro-batch: the sampler moves on by ``count``; no text is read."""
        ids = sampler.take(count)
        for stressor in self._stressors:
            ids = stressor.windows(step, ids, self.text.windows)
        return ids

    def read(self, step: int, ids: NDArray[np.int64]) -> Tokens:
        """[len(ids), length + 1] ids of a micro-batch that was drawn; length is 4x where LongSequence
        strikes.
        """
        batch = self.text.read(ids, self.text.sequence_length)
        for stressor in self._stressors:
            batch = stressor.batch(step, batch, self.text)
        return batch


class ValidationBatches(Sequence[Tokens]):
    """Fixed micro-batches spread evenly over the held-out text, read from its file when they are
    looked at: a process holds one of them at a time.
    """

    def __init__(self, text: Windows, micro_batch: int, most: int) -> None:
        """Up to ``most`` micro-batches, at least one."""
        self._text = text
        self._wanted = min(text.windows, micro_batch * most)
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
        ids = (np.arange(first, last, dtype=np.int64) * self._text.windows) // self._wanted
        return self._text.read(ids, self._text.sequence_length)
