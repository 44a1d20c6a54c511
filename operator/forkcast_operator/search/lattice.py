"""The lattice itself, spread evenly: every axis value as often as every other."""

from __future__ import annotations

from collections import Counter
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
        rest = [actions[i] for i in rng.permutation(len(actions))]
        names = [name for name, _ in lattice.axes()]
        taken: Counter[tuple[str, object]] = Counter()
        chosen: list[Action] = []
        while rest and len(chosen) < count:
            best = min(rest, key=lambda a: sum(taken[n, getattr(a, n)] for n in names))
            rest.remove(best)
            taken.update((name, getattr(best, name)) for name in names)
            chosen.append(best)
        return chosen
