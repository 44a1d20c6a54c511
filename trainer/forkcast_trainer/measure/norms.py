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
    versions: list[tuple[Tensor, int]]

    def still_hold(self, parameters: Sequence[Tensor]) -> bool:
        """Whether no gradient has been changed or replaced since."""
        now = [p.grad for p in parameters if p.grad is not None]
        return len(now) == len(self.versions) and all(
            one is known and one._version == version
            for one, (known, version) in zip(now, self.versions, strict=True)
        )


class Norms:
    """Norms of the gradients of some parameters. Every step passes here, so what is the same at each
    step is looked at once.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._alike = len({(p.device, p.dtype) for p in parameters}) == 1
        self._wide = torch.float32 if parameters and parameters[0].dtype in _HALF else None

    def take(self) -> GradientNorms | None:
        """None if no parameter has a gradient."""
        places, grads = [], []
        for place, parameter in enumerate(self._parameters):
            grad = parameter.grad
            if grad is not None:
                places.append(place)
                grads.append(grad)
        if not grads:
            return None
        if self._alike:
            each = torch.stack(list(torch._foreach_norm(grads, 2, dtype=self._wide)))
        else:
            each = norms(grads)
        return GradientNorms(tuple(places), each, each.norm(), [(g, g._version) for g in grads])


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
