"""The optimizer's moments as a state holds them: which may be saved in 8 bits, and what they cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from forkcast_trainer.optimizers import Layout
from forkcast_trainer.table import Role

#: What 8 bits multiply |m| / sqrt(v) by is less: 17/16 by m, and by the root of v, in a block that spans
#: all powers of two there are, the root of 2.
_ROOM = 1.6
#: The root of a second moment that is too small for a float32.
_TINY = 2.0**-74


def roles(module: nn.Module, layouts: Mapping[Tensor, Layout]) -> Iterator[tuple[str, str, Role]]:
    """(parameter, slot, role) of every moment that may be saved in 8 bits: those of matrices but
    embeddings and heads, whose rows are of as many sizes as tokens are rare; a head is a matrix of an
    embedding's shape. Vectors are few.
    """
    embeddings = {one.weight.shape for one in module.modules() if isinstance(one, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and parameter.shape not in embeddings:
            for slot, role in layouts[parameter].roles().items():
                yield name, slot, role


def largest_ratio(betas: tuple[float, float]) -> float:
    """What |m| / sqrt(v) of a parameter cannot exceed, whatever its gradients were (Cauchy-Schwarz);
    infinite unless the square of the first decay is below the second.
    """
    first, second = betas
    if first * first >= second:
        return math.inf
    return (1 - first) / math.sqrt((1 - second) * (1 - first * first / second))


@torch.no_grad()
def bounded(first: Tensor, second: Tensor, betas: tuple[float, float]) -> tuple[Tensor, int]:
    """The first moment with every element as near to 0 as it must be beside its second moment, and how
    many were not. None is in what 8 bits make of moments that AdamW computed.
    """
    most = second.sqrt().add_(_TINY).mul_(_ROOM * largest_ratio(betas))
    beyond = int((first.abs() > most).sum())
    if not beyond:
        return first, 0
    return torch.maximum(torch.minimum(first, most), -most), beyond
