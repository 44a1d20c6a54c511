"""Bayesian search: a tree-structured Parzen estimator over the lattice's axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window

#: The share of what was measured that counts as good (gamma), and the weight of the uniform prior.
_GOOD, _PRIOR = 0.25, 1.0


class Bayesian:
    """TPE (Bergstra et al., NIPS 2011, section 4) with categorical axes: an action's score
    is the density of its values among the good quarter of what earlier branches measured over that
    among the rest. Actions are drawn without replacement in proportion to it (Gumbel top-k).
    """

    def propose(
        self,
        window: Window,
        lattice: Lattice,
        history: Sequence[tuple[Action, float]],
        rng: np.random.Generator,
        count: int,
    ) -> list[Action]:
        """See `forkcast.ports.Search`."""
        del window
        known = sorted(
            ((gain, n) for n, (action, gain) in enumerate(history) if lattice.contains(action)),
            reverse=True,
        )
        told = [history[n][0] for _, n in known]
        good = math.ceil(_GOOD * len(told))
        actions = list(lattice.actions())
        scores = np.zeros(len(actions))
        for name, values in lattice.axes():
            better = _densities([getattr(action, name) for action in told[:good]], values)
            worse = _densities([getattr(action, name) for action in told[good:]], values)
            ratio = {value: better[value] - worse[value] for value in better}
            scores += [ratio[getattr(action, name)] for action in actions]
        order = np.argsort(-(scores + rng.gumbel(size=len(actions))), kind="stable")
        return [actions[n] for n in order[:count]]


def _densities(seen: Sequence[object], values: Sequence[object]) -> dict[object, float]:
    """The logarithm of each value's share among those seen, with a uniform prior."""
    choices = dict.fromkeys(values)
    counts = Counter(seen)
    total = len(seen) + _PRIOR
    return {v: math.log((counts[v] + _PRIOR / len(choices)) / total) for v in choices}
