"""Window ids to token batches, through the stressors that are switched on."""

from __future__ import annotations

from collections.abc import Sequence

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


def validation_batches(
    tokens: TokenSlice, sequence_length: int, micro_batch: int, most: int
) -> list[Tokens]:
    """Up to ``most`` fixed micro-batches spread evenly over the held-out text; at least one."""
    windows = window_count(tokens, sequence_length)
    wanted = min(windows, micro_batch * most)
    ids = (np.arange(wanted, dtype=np.int64) * windows) // wanted
    text = Batches(tokens, sequence_length, ())
    chunks = np.array_split(ids, max(1, -(-wanted // micro_batch)))
    return [text.read(chunk, sequence_length) for chunk in chunks]
