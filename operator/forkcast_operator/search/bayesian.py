"""Bayesian search: Optuna's tree-structured Parzen estimator over the lattice's axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.records import Window

_TRIES = 8  # asks per wanted action before the rest is filled in lattice order


class Bayesian:
    """TPE (Bergstra et al., 2011) told what earlier branches measured, asked for distinct actions."""

    def propose(
        self,
        window: Window,
        lattice: Lattice,
        history: Sequence[tuple[Action, float]],
        rng: np.random.Generator,
        count: int,
    ) -> list[Action]:
        """See `forkcast.ports.Search`. Raises ModuleNotFoundError without Optuna."""
        import optuna  # only who chooses this strategy needs it

        del window
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        axes = {name: list(dict.fromkeys(values)) for name, values in lattice.axes()}
        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(list(range(len(values))))
            for name, values in axes.items()
        }
        sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)), n_startup_trials=4)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for action, gain in history:
            if lattice.contains(action):
                point = {name: axes[name].index(getattr(action, name)) for name in axes}
                study.add_trial(
                    optuna.trial.create_trial(params=point, distributions=space, value=gain)
                )
        chosen: dict[Action, None] = {}
        wanted = min(count, lattice.size())
        for _ in range(_TRIES * wanted):
            if len(chosen) >= wanted:
                break
            trial = study.ask(space)
            action = Action(**{name: axes[name][trial.params[name]] for name in axes})
            if not action.is_identity:
                chosen.setdefault(action)
        rest = list(lattice.actions())
        for i in rng.permutation(len(rest)):
            if len(chosen) >= wanted:
                break
            chosen.setdefault(rest[i])
        return list(chosen)
