"""The contract of a search strategy, over the whole shelf."""

from __future__ import annotations

import numpy as np
import pytest

from forkcast.actions import Action, Lattice
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_operator.search import SEARCH

WINDOW = Window(
    run_uid="u",
    epoch=0,
    total_steps=100,
    columns={name: np.zeros(0) for name in WINDOW_COLUMNS},
)
LATTICES = {
    "default": Lattice(rewind_steps=(20, 220)),
    "one action": Lattice(
        learning_rate_scales=(0.8,),
        weight_decay_scales=(1.0,),
        clipping=("Keep",),
        momentum_reset=(False,),
    ),
    "a loan": Lattice(
        learning_rate_scales=(1.25, 1.118),
        weight_decay_scales=(1.0,),
        clipping=("Keep",),
        momentum_reset=(False,),
        rewind_steps=(2,),
    ),
    "repeated choices": Lattice(learning_rate_scales=(0.8, 0.8, 1.0), rewind_steps=(5, 5)),
    "identity only": Lattice(
        learning_rate_scales=(1.0,),
        weight_decay_scales=(1.0,),
        clipping=("Keep",),
        momentum_reset=(False,),
    ),
}
HISTORY = [
    (Action(learning_rate_scale=0.8, rewind_steps=20), 0.3),
    (Action(clipping="SPAM", rewind_steps=7), -0.2),  # of a branch with other depths
]


@pytest.mark.parametrize("history", [[], HISTORY], ids=["fresh", "told"])
@pytest.mark.parametrize("lattice", LATTICES.values(), ids=LATTICES)
@pytest.mark.parametrize("name", SEARCH)
def test_contract(name, lattice, history) -> None:
    def propose(seed: int, count: int) -> list[Action]:
        rng = np.random.default_rng(seed)
        return SEARCH[name]().propose(WINDOW, lattice, history, rng, count)

    for count in (1, 16, 500):
        drawn = propose(7, count)
        assert len(drawn) == len(set(drawn)) == min(count, lattice.size())
        assert all(lattice.contains(action) for action in drawn)
        assert drawn == propose(7, count)


def test_the_grid_takes_every_axis_value_equally_often() -> None:
    lattice = LATTICES["default"]
    drawn = SEARCH["Lattice"]().propose(WINDOW, lattice, [], np.random.default_rng(1), 60)
    for axis, values in lattice.axes():
        counts = [sum(getattr(a, axis) == value for a in drawn) for value in values]
        assert max(counts) - min(counts) <= 3, axis


@pytest.mark.parametrize("name", ["Bandit", "Bayesian"])
def test_what_worked_before_is_drawn_more_often(name) -> None:
    lattice = LATTICES["default"]
    told = [(a, 0.2 if a.clipping == "SPAM" else -0.2) for a in list(lattice.actions())[::5]]
    hits = sum(
        action.clipping == "SPAM"
        for seed in range(5)
        for action in SEARCH[name]().propose(WINDOW, lattice, told, np.random.default_rng(seed), 10)
    )
    assert hits > 15  # 10 of 50 by chance
