"""The lattice itself, spread evenly: every axis value as often as every other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window


class LatticeGrid:
    """Takes, in a seeded order, the action whose axis values were taken least so far."""

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
        actions = [actions[i] for i in rng.permutation(len(actions))]
        codes = [  # [size] for each axis: which of its values an action takes
            np.array([values.index(getattr(action, name)) for action in actions], dtype=np.intp)
            for name, values in lattice.axes()
        ]
        taken = [np.zeros(len(values)) for _, values in lattice.axes()]
        used = np.zeros(len(actions))
        chosen: list[Action] = []
        for _ in range(min(count, len(actions))):
            best = int(np.argmin(used))  # the first of equals in the seeded order
            for counts, code in zip(taken, codes, strict=True):
                counts[code[best]] += 1
                used += code == code[best]
            used[best] = np.inf
            chosen.append(actions[best])
        return chosen
