"""Statistics as a healthy run of the quickstart's size reports them, made from a seed."""

from __future__ import annotations

import math

import numpy as np

from forkcast.records import StepStats

_LAYERS = 4
_INTERNALS_EVERY = 5
_UPDATES_EVERY = 10
_GROUPS = ("embedding", "attention", "mlp", "norm")


def made_statistics(
    count: int, *, run_uid: str, attempt: int = 0, seed: int = 0
) -> list[StepStats]:
    """``count`` steps from 0 on: a falling loss with autocorrelated noise, no departures."""
    rng = np.random.default_rng(seed)
    noise = 0.0
    made = []
    for step in range(count):
        noise = 0.5 * noise + 0.05 * float(rng.standard_normal())
        norm = math.exp(0.2 * float(rng.standard_normal()))
        inside, updated = step % _INTERNALS_EVERY == 0, step % _UPDATES_EVERY == 0
        layers = tuple((0.7 + 0.02 * rng.standard_normal(_LAYERS)).tolist())
        made.append(
            StepStats(
                run_uid=run_uid,
                epoch=0,
                attempt=attempt,
                rank=0,
                step=step,
                loss=2.0 + 3.5 * math.exp(-step / 300) + noise,
                grad_norm=norm,
                grad_norm_clipped=min(1.0, norm),
                learning_rate=1e-3,
                tokens=256 * (step + 1),
                update_ratio=1e-3 if updated else None,
                rms_max=1.1 if updated else None,
                update_cosine=-0.01 if updated else None,
                attention_entropy=layers if inside else None,
                attention_logit_max=5.0 + float(rng.standard_normal()) if inside else None,
                activation_mean=layers if inside else None,
                activation_sd=layers if inside else None,
                group_grad_norms=dict.fromkeys(_GROUPS, norm) if updated else {},
                step_seconds=0.06,
            )
        )
    return made
