"""The parts of a module that others reach for: the head, and what statistics are read of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Head:
    """weight: [vocabulary, width]. bias: [vocabulary] or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Special:
    """Ids that are no text. start: what a decoder reads first. end: of the text. sentinels: what stands
    for hidden spans, in their order.
    """

    start: int
    end: int
    sentinels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Taps:
    """blocks: whose output is the residual stream, bottom up. attention: of each block, the module
    inside which its queries meet its keys. final: whose output the head multiplies. head: the head.
    """

    blocks: Sequence[nn.Module]
    attention: Sequence[nn.Module]
    final: nn.Module
    head: nn.Module
