"""What is told of attention and of blocks' outputs, as values on the device, by name and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

#: Per layer; a value's name is one of these and its layer.
LAYERED: Final = ("attention_entropy", "activation_mean", "activation_sd")


def summary(logits: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Of attention logits [heads, rows, keys]: the largest, and the mean over heads and rows of the entropy
    over log(visible keys), in [0, 1]. Rows that see one key are left out. hidden: [heads or 1, rows, keys],
    what a row does not see.
    """
    visible = (~hidden).sum(-1).expand(logits.shape[:-1])
    masked = logits.masked_fill(hidden, -torch.inf)
    log_p = masked.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(hidden, 0.0)).sum(-1)
    rows = visible > 1
    shares = torch.where(rows, entropy / visible.clamp_min(2).float().log(), 0.0)
    return masked.max(), shares.sum() / rows.sum().clamp_min(1)


def by_layer(
    tops: Sequence[Tensor],
    entropies: Sequence[Tensor],
    means: Sequence[Tensor],
    deviations: Sequence[Tensor],
) -> dict[str, Tensor]:
    """0-d values of each layer; of the largest logits the largest of all. tops: not empty."""
    values = {"attention_logit_max": torch.stack(list(tops)).max()}
    for name, each in zip(LAYERED, (entropies, means, deviations), strict=True):
        values |= {f"{name}:{layer}": value for layer, value in enumerate(each)}
    return values


def layers(numbers: Mapping[str, float], name: str) -> tuple[float, ...]:
    """What `by_layer` named, once it has come; empty if it was not sampled."""
    return tuple(value for key, value in numbers.items() if key.startswith(f"{name}:"))
