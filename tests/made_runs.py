"""Runs made up for the detector's tests: a healthy course, and what is laid over it.

Everything is drawn from a seed, and every departure is many scales large, or its absence is: no test hangs
on how a figure rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from forkcast.records import StepStats, Tier
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector, Reading
from forkcast_wire.manifest import Uncertainty
from tests.make import step_stats

#: Standard deviation of a healthy row, nats/token.
NOISE = 0.03
#: What a made run changes of a row, given its step.
Change = Callable[[int], Mapping[str, float]]


def healthy(
    steps: int = 1200,
    *,
    seed: int = 0,
    noise: float = NOISE,
    every: int = 1,
    end: float = 3.0,
    fall: float = 3.0,
    tau: float = 300.0,
    **columns: Callable[[int], Any],
) -> list[StepStats]:
    """A loss that falls by ``fall`` nats to ``end`` with the time constant ``tau``, and a gradient norm about 1,
    a row every so many steps. columns: of the step, for every other column.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(0, steps, every):
        more = {name: column(step) for name, column in columns.items()}
        loss = end + fall * math.exp(-step / tau) + noise * rng.standard_normal()
        norm = math.exp(0.1 * rng.standard_normal())
        rows.append(step_stats(step, loss=loss, grad_norm=norm, grad_norm_clipped=norm, **more))
    return rows


def laid_over(
    rows: Iterable[StepStats],
    first: int,
    last: int,
    *,
    rise: float | Callable[[int], float] = 0.0,
    norm: float = 1.0,
) -> list[StepStats]:
    """The rows, with the loss raised by ``rise`` (nats, or nats by steps since ``first``) and the norm times
    ``norm`` at the steps ``first`` to ``last``.
    """
    found = []
    for row in rows:
        if first <= row.step <= last:
            by = rise(row.step - first) if callable(rise) else rise
            row = replace(row, loss=row.loss + by, grad_norm=row.grad_norm * norm)  # noqa: PLW2901
        found.append(row)
    return found


def detector(**rules: Any) -> Detector:
    """The default one, with these fields of a manifest; it judges from row 100 on."""
    return Detector(configure(Uncertainty.model_validate({"warmupSteps": 100, **rules})), "u")


def readings(rows: Iterable[StepStats], one: Detector | None = None) -> list[Reading]:
    """What a detector makes of the rows."""
    one = detector() if one is None else one
    return [one.fold(row) for row in rows]


def story(found: Iterable[Reading]) -> Iterator[tuple[int, Tier, str, int, str]]:
    """(step, tier, component, onset, cause) of the events."""
    for reading in found:
        if (event := reading.event) is not None:
            yield event.step, event.tier, event.component, event.onset_step, event.cause
