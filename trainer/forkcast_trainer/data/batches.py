"""Window ids to token batches, through the stressors that are switched on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.data.mixture import Mixture
from forkcast_trainer.data.sampler import Sampler
from forkcast_trainer.data.token_file import TokenSlice
from forkcast_trainer.data.tokens import Tokens
from forkcast_trainer.stressors.base import DataStressor

Ids = NDArray[np.int64]


def window_count(tokens: TokenSlice, sequence_length: int) -> int:
    """How many windows of sequence_length + 1 ids (one id shared) the tokens hold."""
    return (tokens.count - 1) // sequence_length


class Windows:
    """The windows of one text or of several, numbered through from the first text's first; none lies
    in two texts, nor in two files.
    """

    def __init__(self, texts: Sequence[Tokens], sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self.weights = [text.weight for text in texts]
        parts = [part for text in texts for part in text.parts]
        self._arrays = [np.asarray(part.array) for part in parts]
        of_parts = [[window_count(part, sequence_length) for part in one.parts] for one in texts]
        #: Of each text.
        self.counts = [sum(counts) for counts in of_parts]
        self._firsts = np.cumsum([0, *(count for counts in of_parts for count in counts)])
        self.windows = int(self._firsts[-1])

    def read(self, ids: Ids, length: int) -> Ids:
        """[len(ids), length + 1] ids that begin at the windows' first ids; the last windows of a text
        are shifted back so that a longer read stays inside it. Shorter where a text is.
        """
        numbers = np.searchsorted(self._firsts, ids, side="right") - 1
        length = min(length, *(len(self._arrays[number]) - 1 for number in set(numbers.tolist())))
        batch = np.empty((len(ids), length + 1), dtype=np.int64)
        within = (ids - self._firsts[numbers]) * self.sequence_length
        for row, number, start in zip(batch, numbers.tolist(), within.tolist(), strict=True):
            array = self._arrays[number]
            first = min(start, len(array) - length - 1)
            row[:] = array[first : first + length + 1]
        return batch

    def first_ids(self, count: int) -> NDArray[np.generic]:
        """Up to ``count`` ids from the beginnings of the texts, as many of each."""
        share = max(1, count // len(self._arrays))
        return np.concatenate([array[:share] for array in self._arrays])


class Batches:
    """Batches of the training text. What a step sees depends on the sampler's state and the step
    alone, so every fork of a state sees the same.
    """

    def __init__(self, text: Windows, stressors: Sequence[DataStressor]) -> None:
        self.text, self._stressors = text, stressors

    def draw(self, step: int, sampler: Sampler | Mixture, count: int) -> Ids:
        """The windows of a micro-batch: the sampler moves on by ``count``; no text is read."""
        ids = sampler.take(count)
        for stressor in self._stressors:
            ids = stressor.windows(step, ids, self.text.windows)
        return ids

    def read(self, step: int, ids: Ids) -> Ids:
        """[len(ids), length + 1] ids of a micro-batch that was drawn; length is 4x where LongSequence
        strikes.
        """
        batch = self.text.read(ids, self.text.sequence_length)
        for stressor in self._stressors:
            batch = stressor.batch(step, batch, self.text)
        return batch


class ValidationBatches(Sequence[Ids]):
    """Fixed micro-batches spread evenly over the held-out text, of several texts by their weights; read
    from the files when they are looked at: a process holds one of them at a time.
    """

    def __init__(self, text: Windows, micro_batch: int, most: int) -> None:
        """Up to ``most`` micro-batches, at least one."""
        self._text = text
        self._chosen = shares(text.counts, text.weights, micro_batch * most)
        self._ends = np.cumsum(self._chosen)
        self._firsts = np.cumsum([0, *text.counts[:-1]])
        self._wanted = int(self._ends[-1])
        self._count = max(1, -(-self._wanted // micro_batch))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Ids: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Ids]: ...
    def __getitem__(self, number: int | slice) -> Ids | Sequence[Ids]:
        """[windows, length + 1] ids of a micro-batch; sizes differ by at most one."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        size, larger = divmod(self._wanted, self._count)
        first = number * size + min(number, larger)
        places = np.arange(first, first + size + (number < larger), dtype=np.int64)
        texts = np.searchsorted(self._ends, places, side="right")
        chosen, counts = np.array(self._chosen), np.array(self._text.counts)
        within = places - (self._ends - chosen)[texts]
        ids = self._firsts[texts] + within * counts[texts] // chosen[texts]
        return self._text.read(ids, self._text.sequence_length)


def shares(counts: Sequence[int], weights: Sequence[float], most: int) -> list[int]:
    """How many windows of each text stand for the mixture: as many as its weight says, at least one, up
    to ``most`` in all as far as each text has them.
    """
    total = math.fsum(weights)
    parts = [weight / total for weight in weights]
    whole = min([most, *(int(count / part) for count, part in zip(counts, parts, strict=True))])
    return [
        max(1, min(count, round(whole * part))) for count, part in zip(counts, parts, strict=True)
    ]
