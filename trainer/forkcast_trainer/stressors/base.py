"""What a stressor is: a seeded disturbance without state.

A stressor draws from generators seeded by (its seed, its type, the step) alone. It keeps no state,
so that a run that is forked or resumed meets the same disturbances at the same steps. The type is in
the seed because stressors of one seed would otherwise strike at the same steps; whether it strikes
and what it then does are separate streams, or a rare strike would always bring the same low draws.
"""

from __future__ import annotations

from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from forkcast_wire.manifest import STRESSOR_PROBABILITY, Stressor

_WHETHER, _WHAT = 0, 1

Ids = NDArray[np.int64]


class Text(Protocol):
    """What a data stressor may read of the training text."""

    sequence_length: int
    windows: int

    def read(self, ids: Ids, length: int) -> Ids:
        """[len(ids), length + 1] ids from the windows' starts."""

    def first_ids(self, count: int) -> NDArray[np.generic]:
        """Up to ``count`` ids of it."""


class SeededStressor:
    """What all stressors share: the manifest's part, and the generators."""

    def __init__(self, spec: Stressor) -> None:
        self.spec = spec
        given = spec.probability
        self.probability = STRESSOR_PROBABILITY[spec.type] if given is None else given

    def chance(self, number: int) -> bool:
        """Whether it strikes at the step, interval or run of that number."""
        return bool(self._stream(_WHETHER, number).random() < self.probability)

    def generator(self, step: int) -> np.random.Generator:
        """What it draws from at this step."""
        return self._stream(_WHAT, step)

    def _stream(self, purpose: int, number: int) -> np.random.Generator:
        kind = crc32(self.spec.type.encode())
        return np.random.default_rng([self.spec.seed, kind, purpose, number])


class DataStressor(SeededStressor):
    """Base of the stressors that change what a step sees; each overrides one method."""

    def active(self, step: int) -> bool:
        """Whether the step lies in [fromStep, toStep)."""
        return self.spec.from_step <= step and (not self.spec.to_step or step < self.spec.to_step)

    def strikes(self, step: int) -> bool:
        """Whether it strikes at this step."""
        return self.active(step) and self.chance(step)

    def windows(self, step: int, ids: Ids, count: int) -> Ids:  # noqa: ARG002
        """The window ids to read instead of ``ids``, in [0, count)."""
        return ids

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:  # noqa: ARG002
        """The batch to train on instead of ``batch``."""
        return batch


class RateStressor(SeededStressor):
    """Base of the stressors that change the learning rate."""

    def rate(self, step: int, scheduled: float, peak: float) -> float:  # noqa: ARG002
        """The rate to use at the step instead of ``scheduled``."""
        return scheduled
