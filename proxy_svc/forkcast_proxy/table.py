"""Training records as arrays, and their folds by runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkcast_proxy.baselines import BASELINES
from forkcast_proxy.features import FEATURE_NAMES, FloatMatrix, features, reference_loss
from forkcast_proxy.network import Targets
from forkcast_proxy.records import Record

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
FOLDS = 5
_LEAST_RUNS = 10
#: A loss this many references away says no more than one nearer.
_FARTHEST = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Records as arrays of N rows. reference: nats/token. diverged rows have no loss."""

    records: Sequence[Record]
    matrix: FloatMatrix
    targets: Targets
    reference: FloatArray
    baselines: dict[str, FloatArray]

    def rows(self, chosen: BoolArray) -> Table:
        """The chosen rows."""
        return Table(
            [one for one, keep in zip(self.records, chosen, strict=True) if keep],
            self.matrix[chosen],
            self.targets.rows(chosen),
            self.reference[chosen],
            {name: values[chosen] for name, values in self.baselines.items()},
        )

    @property
    def horizons(self) -> NDArray[np.int64]:
        """[N] steps ahead."""
        return np.array([one.outcome.horizon for one in self.records], dtype=np.int64)

    @property
    def losses(self) -> FloatArray:
        """[N] true losses relative to the reference; NaN where unknown."""
        return np.where(self.targets.known[:, 0], self.targets.values[:, 0], np.nan)


def tabulate(records: Sequence[Record]) -> Table:
    """Rows of forks without a finite loss are left out: the service abstains on them."""
    kept, rows, values, forks = [], [], [], []
    references, trivial = [], []
    seen: dict[tuple[str, int, int], tuple[int, list[float]]] = {}
    runs = {name: n for n, name in enumerate(dict.fromkeys(r.fork.run for r in records))}
    for record in records:
        window, outcome = record.fork.window, record.outcome
        reference = reference_loss(window)
        if reference is None:
            continue
        key = record.fork.run, record.fork.step, outcome.horizon
        if key not in seen:
            seen[key] = (len(seen), [f(window, outcome.horizon) for f in BASELINES.values()])
        number, guesses = seen[key]
        kept.append(record)
        rows.append(features(window, [record.action], outcome.horizon)[0])
        change = np.clip(outcome.mean_loss / reference - 1.0, -1.0, _FARTHEST)
        values.append((change, float(outcome.event), math.log1p(outcome.recovery_steps)))
        forks.append(number)
        references.append(reference)
        trivial.append(guesses)
    targets = np.array(values, dtype=np.float64).reshape(-1, 3)
    reference_array = np.array(references)
    relative = np.array(trivial).reshape(-1, len(BASELINES)) / reference_array[:, None] - 1.0
    return Table(
        kept,
        np.array(rows, dtype=np.float32).reshape(-1, len(FEATURE_NAMES)),
        Targets(
            np.nan_to_num(targets),
            np.isfinite(targets),
            np.array(forks, dtype=np.int64),
            np.array([runs[one.fork.run] for one in kept], dtype=np.int64),
        ),
        reference_array,
        {name: relative[:, n] for n, name in enumerate(BASELINES)},
    )


def folds(runs: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """[N] fold of each row, 0 to FOLDS - 1; a run is never divided. Raises ValueError for too few
    runs.
    """
    kinds = np.unique(runs)
    if len(kinds) < _LEAST_RUNS:
        raise ValueError(f"records: {len(kinds)} runs are too few; collect at least {_LEAST_RUNS}")
    drawn = np.random.default_rng(seed).permutation(np.arange(len(kinds)) % FOLDS)
    placed: NDArray[np.int64] = drawn[np.searchsorted(kinds, runs)]
    return placed
