"""What a stressor is: a seeded disturbance without state.

A stressor draws from a generator seeded by (its seed, the step) alone. It keeps no state, so that
a run that is forked or resumed meets the same disturbances at the same steps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.data.tokens import TokenSlice
from forkcast_wire.manifest import STRESSOR_PROBABILITY, Stressor

Ids = NDArray[np.int64]


class Text(Protocol):
    """What a data stressor may read of the training text."""

    sequence_length: int
    windows: int
    tokens: TokenSlice

    def read(self, ids: Ids, length: int) -> Ids:
        """[len(ids), length + 1] ids from the windows' starts."""


class DataStressor:
    """Base of the stressors that change what a step sees; each overrides one method."""

    def __init__(self, spec: Stressor) -> None:
        self.spec = spec
        given = spec.probability
        self.probability = STRESSOR_PROBABILITY[spec.type] if given is None else given

    def active(self, step: int) -> bool:
        """Whether the step lies in [fromStep, toStep)."""
        return self.spec.from_step <= step and (not self.spec.to_step or step < self.spec.to_step)

    def strikes(self, step: int) -> bool:
        """Whether it strikes at this step."""
        return self.active(step) and self.generator(step).random() < self.probability

    def generator(self, step: int) -> np.random.Generator:
        """The generator of this stressor at this step."""
        return np.random.default_rng([self.spec.seed, step])

    def windows(self, step: int, ids: Ids, count: int) -> Ids:  # noqa: ARG002
        """The window ids to read instead of ``ids``, in [0, count)."""
        return ids

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:  # noqa: ARG002
        """The batch to train on instead of ``batch``."""
        return batch


class RateStressor:
    """Base of the stressors that change the learning rate."""

    def __init__(self, spec: Stressor) -> None:
        self.spec = spec

    def rate(self, step: int, scheduled: float, peak: float) -> float:  # noqa: ARG002
        """The rate to use at the step instead of ``scheduled``."""
        return scheduled
