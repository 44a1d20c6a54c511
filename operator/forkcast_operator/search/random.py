"""Uniform draws without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window


class RandomSearch:
    """The baseline every other strategy has to beat."""

    def propose(
        self,
        window: Window,
        lattice: Lattice,
        history: Sequence[tuple[Action, float]],
        rng: np.random.Generator,
        count: int,
    ) -> list[Action]:
        """See `forkcast.ports.Search`."""
        del window, history
        actions = list(lattice.actions())
        return [actions[i] for i in rng.permutation(len(actions))[:count]]
