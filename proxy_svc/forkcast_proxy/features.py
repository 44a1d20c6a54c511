"""Window x actions to numbers: float32 [M, F], pure, finite for any window.

Everything is scale-free: losses count relative to the window's last EMA loss, the other statistics
as logarithms of ratios, so that a model fitted on small runs meets familiar numbers on larger ones.
Only the last 64 steps are read, so that a detector window of 64 and one of 512 look alike. A
statistic that was not sampled stands as 0 with a flag beside it that says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkcast.actions import KEEP, Action
from forkcast.records import WINDOW_COLUMNS, FloatArray, Window

FloatMatrix = NDArray[np.float32]

#: Rises whenever the meaning of a column changes; a model of another version is refused.
FEATURE_VERSION = 1
#: The clipping policies that version 1 has a column for; any other is "other" to its models.
_CLIPPING = ("ZClip", "ARC", "SPAM", "None")
SPAN = 64
#: Steps that count as "now", and the decay of the reference EMA.
_RECENT, _DECAY = 8, 0.95
#: Magnitudes beyond this are garbage, not statistics; no feature leaves +-_LIMIT.
_ABSURD, _LIMIT = 1e9, 20.0
_TINY = 1e-12
_REWIND_SCALE, _HORIZON_SCALE = 100.0, 200.0


def reference_loss(window: Window) -> float | None:
    """The EMA (decay .95, bias-corrected) of the finite losses of the last 64 steps, nats/token;
    None if there is none. Forecast losses are relative to it.
    """
    losses = _valid(window.columns["loss"][-SPAN:])
    losses = losses[losses > _TINY]
    if not len(losses):
        return None
    weights = _DECAY ** np.arange(len(losses) - 1, -1, -1, dtype=np.float64)
    return float(weights @ losses / weights.sum())


def features(window: Window, actions: Sequence[Action], horizon: int) -> FloatMatrix:
    """[M, F] with the columns FEATURE_NAMES; horizon: steps after the window's last, >= 1."""
    matrix = np.empty((len(actions), len(FEATURE_NAMES)))
    matrix[:, : len(WINDOW_FEATURES)] = list(_of_window(window, horizon).values())
    for row, action in enumerate(actions):
        matrix[row, len(WINDOW_FEATURES) :] = _row_of(action)
    finite = np.nan_to_num(matrix, copy=False, posinf=_LIMIT, neginf=-_LIMIT)
    return np.clip(finite, -_LIMIT, _LIMIT).astype(np.float32)


@lru_cache(maxsize=4096)
def _row_of(action: Action) -> tuple[float, ...]:
    """An action's columns; a lattice has a few hundred actions, and they come again and again."""
    return tuple(_of_action(action).values())


def _valid(values: FloatArray) -> FloatArray:
    """The values that can be statistics at all."""
    kept: FloatArray = values[np.isfinite(values) & (np.abs(values) < _ABSURD)]
    return kept


def _logs(values: FloatArray) -> FloatArray:
    """Logarithms of the positive valid values."""
    kept = _valid(values)
    logs: FloatArray = np.log(kept[kept > _TINY])
    return logs


def _rise(values: FloatArray) -> float:
    """Mean of the last eight minus the median of all."""
    return float(values[-_RECENT:].mean() - np.median(values))


def _of_window(window: Window, horizon: int) -> dict[str, float]:
    """Named features of a window; every optional group ends with its missing flag."""
    columns = {name: column[-SPAN:] for name, column in window.columns.items()}
    named = _of_progress(columns["step"], window.total_steps, horizon)
    named |= _of_loss(columns["loss"], reference_loss(window))
    for group, values in _optional(columns, reference_loss(window)).items():
        named |= {f"{group}_{name}": value for name, value in values.items()}
    return named


def _of_progress(steps: FloatArray, total_steps: int, horizon: int) -> dict[str, float]:
    step = float(steps[-1]) if len(steps) and np.isfinite(steps[-1]) else 0.0
    total = max(float(total_steps), 1.0)
    left = max(total - step - 1.0, 1.0)
    return {
        "progress": float(np.clip(step / total, 0.0, 1.0)),
        "horizon": float(np.log(max(horizon, 1) / _HORIZON_SCALE)),
        "horizon_of_left": float(np.clip(horizon / left, 0.0, 1.0)),
        "window_filled": len(steps) / SPAN,
    }


def _of_loss(losses: FloatArray, reference: float | None) -> dict[str, float]:
    """Level, trend and noise of the loss, all over the reference."""
    names = ("rise", "trend", "noise", "noise_now", "peak", "above_best", "not_finite")
    kept = _valid(losses)
    if reference is None or len(kept) < 2:
        return {f"loss_{name}": float(name == "not_finite") for name in names}
    ratio = kept / reference
    x = np.linspace(-0.5, 0.5, len(ratio))
    slope = float(x @ (ratio - ratio.mean()) / (x @ x))
    rest = ratio - ratio.mean() - slope * x
    smooth = np.convolve(ratio, np.ones(_RECENT) / _RECENT, "valid") if len(ratio) > 8 else ratio
    figures = (
        _rise(ratio),
        slope,
        float(rest.std()),
        float(rest[-2 * _RECENT :].std()),
        float(ratio[-2 * _RECENT :].max() - 1.0),
        float(smooth[-1] - smooth.min()),
        1.0 - len(kept) / len(losses),
    )
    return {f"loss_{name}": figure for name, figure in zip(names, figures, strict=True)}


def _optional(
    columns: Mapping[str, FloatArray], reference: float | None
) -> dict[str, dict[str, float]]:
    """Groups of statistics that may be missing, each with its flag."""
    grad, clipped = columns["grad_norm"], columns["grad_norm_clipped"]
    rate = _logs(columns["learning_rate"])
    ratio, rms = _logs(columns["update_ratio"]), _logs(columns["rms_max"])
    cosine, entropy = _valid(columns["update_cosine"]), _valid(columns["attention_entropy"])
    logit, spread = _logs(columns["attention_logit_max"]), _logs(columns["activation_sd"])
    validation, z = _valid(columns["validation_loss"]), _valid(columns["index_z"])
    norms = _logs(grad)
    held = np.isfinite(grad) & np.isfinite(clipped) & (grad > _TINY) & (clipped > _TINY)
    kept = np.log(np.minimum(clipped[held], _ABSURD)) - np.log(np.minimum(grad[held], _ABSURD))

    def group(values: FloatArray, **figures: Callable[[FloatArray], Any]) -> dict[str, float]:
        named = {n: float(figure(values)) if len(values) else 0.0 for n, figure in figures.items()}
        return {**named, "missing": float(not len(values))}

    gap = validation / reference - 1.0 if reference is not None else validation[:0]
    return {
        "grad": group(
            norms,
            rise=_rise,
            noise=np.std,
            peak=lambda v: v[-2 * _RECENT :].max() - np.median(v),
            trend=lambda v: v[len(v) // 2 :].mean() - v[: len(v) // 2 + 1].mean(),
        ),
        "clip": group(kept, mean=np.mean, share=lambda v: np.mean(v < -1e-3)),
        "rate": group(rate, of_peak=lambda v: v[-1] - v.max(), trend=lambda v: v[-1] - v[0]),
        "update": group(ratio, level=lambda v: np.mean(v[-_RECENT:]), rise=_rise),
        "rms": group(rms, level=lambda v: np.mean(v[-_RECENT:]), peak=np.max),
        "cosine": group(cosine, mean=np.mean, now=lambda v: np.mean(v[-_RECENT:])),
        "entropy": group(entropy, now=lambda v: v[-1], change=lambda v: v[-1] - v[0]),
        "logit": group(logit, now=lambda v: v[-1], change=lambda v: v[-1] - v[0]),
        "activation": group(spread, change=lambda v: v[-1] - v[0]),
        "validation": group(gap, gap=lambda v: v[-1]),
        "index": group(
            np.clip(z, -10.0, 10.0),
            now=lambda v: v[-1],
            peak=lambda v: v[-2 * _RECENT :].max(),
            mean=np.mean,
        ),
    }


def _of_action(action: Action) -> dict[str, float]:
    """Named features of an action; a policy the model has never met is all zeros but ``other``."""
    named = {
        "log_rate_scale": math.log(action.learning_rate_scale),
        "lowers_rate": float(action.learning_rate_scale < 1.0),
        "log_decay_scale": math.log(action.weight_decay_scale),
        "momentum_reset": float(action.momentum_reset),
        "rewind": math.log1p(action.rewind_steps / _REWIND_SCALE),
        "data_reorder": float(action.data_reorder),
        "skip_batches": math.log1p(action.skip_batches),
        "clipping_other": float(action.clipping not in (KEEP, *_CLIPPING)),
    }
    return named | {f"clipping_{name}": float(action.clipping == name) for name in _CLIPPING}


_EMPTY = Window("", 0, 1, {name: np.zeros(0) for name in WINDOW_COLUMNS})
#: Columns that describe the window, then those that describe the action.
WINDOW_FEATURES = tuple(_of_window(_EMPTY, 1))
ACTION_FEATURES = tuple(_of_action(Action()))
FEATURE_NAMES = (*WINDOW_FEATURES, *ACTION_FEATURES)
