"""Search strategies by name. To add one: a file here, and a line in SEARCH."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from forkcast.ports import Search
from forkcast_operator.search.bandit import Bandit
from forkcast_operator.search.bayesian import Bayesian
from forkcast_operator.search.lattice import LatticeGrid
from forkcast_operator.search.random import RandomSearch

SEARCH: Mapping[str, Callable[[], Search]] = {
    "Lattice": LatticeGrid,
    "Random": RandomSearch,
    "Bandit": Bandit,
    "Bayesian": Bayesian,
}
