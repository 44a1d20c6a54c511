"""Norms of many tensors at once, as values on their device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class GradientNorms:
    """Of the gradients that were there. present: their places among the parameters. each: [n] float32
    (float64 for float64 gradients), on the first one's device. total: 0-d. versions: of the gradients,
    which rise with every change in place.
    """

    present: tuple[int, ...]
    each: Tensor
    total: Tensor
    versions: tuple[tuple[int, int], ...]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each, [n], summed in float32 at least; on the device of the first."""
    found: list[Tensor | None] = [None] * len(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, one in enumerate(tensors):
        kinds.setdefault((one.device, one.dtype), []).append(place)
    for (_, dtype), places in kinds.items():
        group = [tensors[place] for place in places]
        wide = torch.float32 if dtype in _HALF else None
        for place, norm in zip(places, torch._foreach_norm(group, 2, dtype=wide), strict=True):
            found[place] = norm
    first = tensors[0].device
    each = [one.to(first, non_blocking=True) for one in found if one is not None]
    kind = torch.float64 if any(one.dtype == torch.float64 for one in each) else torch.float32
    return torch.stack([one.to(kind) for one in each])


def gradient_norms(parameters: Sequence[Tensor]) -> GradientNorms | None:
    """None if no parameter has a gradient."""
    grads = [(place, p.grad) for place, p in enumerate(parameters) if p.grad is not None]
    if not grads:
        return None
    present = tuple(place for place, _ in grads)
    each = norms([grad for _, grad in grads])
    return GradientNorms(present, each, each.norm(), versions(parameters))


def versions(parameters: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Identity and version of each gradient; equal where nothing has changed them since."""
    grads = (p.grad for p in parameters)
    return tuple((id(one), one._version) for one in grads if one is not None)
