"""A log's columns through a detector, to score detectors on labelled logs. Causal.

`alarms` and `branches` take equally long float arrays by name: `step`, `loss` (nats/token) and, if the log
has them, `grad_norm`, `lr`, `rms_max`, `attention_logit_max`, `update_ratio`, `validation_loss` and
`attention_entropy`, the last as [rows], of the lowest layer, or [rows, layers]; NaN is "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from forkcast.records import FloatArray, StepStats
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector, Reading
from forkcast_wire.manifest import Uncertainty

Columns = Mapping[str, Sequence[float] | FloatArray]
Flags = NDArray[np.bool_]
_OPTIONAL: Final = ("rms_max", "attention_logit_max", "update_ratio", "validation_loss")
#: No level is known before so many rows.
_WARMUP_ROWS: Final = 50


def records(columns: Columns) -> Iterator[StepStats]:
    """The rows of a log as records of steps."""
    names = [name for name in _OPTIONAL if name in columns]
    nothing = [math.nan] * len(columns["loss"])
    norms, rates = columns.get("grad_norm", nothing), columns.get("lr", nothing)
    entropies = columns.get("attention_entropy", nothing)
    for row, (step, loss) in enumerate(zip(columns["step"], columns["loss"], strict=True)):
        norm, rate = float(norms[row]), float(rates[row])
        more: dict[str, Any] = {name: float(columns[name][row]) for name in names}
        layers = [float(one) for one in np.atleast_1d(entropies[row])]
        if not any(map(math.isnan, layers)):
            more["attention_entropy"] = tuple(layers)
        yield StepStats(
            run_uid="log",
            epoch=0,
            attempt=0,
            rank=0,
            step=int(step),
            loss=float(loss),
            grad_norm=norm,
            grad_norm_clipped=norm,
            learning_rate=0.0 if math.isnan(rate) else rate,
            tokens=0,
            **{name: value for name, value in more.items() if value == value},  # noqa: PLR0124
        )


def readings(
    columns: Columns, preset: str = "Forkcast", weights: Mapping[str, float] | None = None
) -> Iterator[Reading]:
    """What the detector makes of each row. weights: of the signals of preset Forkcast, see the manifest."""
    rules = Uncertainty(
        preset=preset,
        warmup_steps=_WARMUP_ROWS,
        weights=None if weights is None else dict(weights),
    )
    detector = Detector(configure(rules), "log")
    return (detector.fold(stats) for stats in records(columns))


def verdicts(
    columns: Columns, preset: str = "Forkcast", weights: Mapping[str, float] | None = None
) -> tuple[Flags, Flags]:
    """`alarms` and `branches` in one pass."""
    config = configure(Uncertainty(preset=preset))
    limit = config.trigger.tiers.single_z
    standing = [
        name
        for name, kind in config.preset.signals.items()
        if kind.rule is None and not config.preset.quiet
    ]
    hot: list[bool] = []
    asked: list[bool] = []
    for one in readings(columns, preset, weights):
        index = one.index
        over = index.ready and any(index.components.get(name, 0.0) > limit for name in standing)
        hot.append(one.event is not None or over)
        asked.append(one.trigger is not None)
    return np.array(hot, dtype=bool), np.array(asked, dtype=bool)


def alarms(columns: Columns, preset: str = "Forkcast") -> Flags:
    """By row, whether an event begins or rises at it, or a departure stands over the threshold that no rule
    of its own tells (a slow or an internal one may last for thousands of rows).
    """
    return verdicts(columns, preset)[0]


def branches(columns: Columns, preset: str = "Forkcast") -> Flags:
    """By row, whether a branch is asked for at it."""
    return verdicts(columns, preset)[1]
