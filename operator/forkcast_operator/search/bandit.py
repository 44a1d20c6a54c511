"""A bandit over axis values: Thompson sampling on what earlier branches measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window

_PRIOR_SD = 0.05  # nats/token: how far one axis value may plausibly move the loss
_NOISE_SD = 0.02


class Bandit:
    """Each axis value has a normal posterior of its effect on the improvement (prior N(0, .05^2),
    noise .02 nats); an action's draw is the sum over its axes. With no history it is uniform.
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
        draws = {
            (name, value): rng.normal(*self._posterior(name, value, history))
            for name, values in lattice.axes()
            for value in dict.fromkeys(values)
        }
        names = [name for name, _ in lattice.axes()]
        actions = list(lattice.actions())
        scores = [sum(draws[name, getattr(a, name)] for name in names) for a in actions]
        order = sorted(range(len(actions)), key=lambda i: (-scores[i], actions[i]))
        return [actions[i] for i in order[:count]]

    @staticmethod
    def _posterior(
        name: str, value: object, history: Sequence[tuple[Action, float]]
    ) -> tuple[float, float]:
        gains = [gain for action, gain in history if getattr(action, name) == value]
        precision = 1 / _PRIOR_SD**2 + len(gains) / _NOISE_SD**2
        mean = math.fsum(gains) / _NOISE_SD**2 / precision
        return mean, 1 / math.sqrt(precision)
