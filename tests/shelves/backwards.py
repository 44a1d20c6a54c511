"""A toy search: the lattice from its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window


class Backwards:
    """Takes the last actions first."""

    def propose(
        self,
        window: Window,
        lattice: Lattice,
        history: Sequence[tuple[Action, float]],
        rng: np.random.Generator,
        count: int,
    ) -> list[Action]:
        """See `forkcast.ports.Search`."""
        del window, history, rng
        return list(lattice.actions())[::-1][:count]
