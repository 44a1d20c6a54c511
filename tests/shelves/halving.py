"""A toy clipping policy: half of every gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forkcast_trainer.clipping.base import ClipContext, ClippingPolicy, ClipResult, gradients


class Halving(ClippingPolicy):
    """Takes no parameter."""

    def clip_by(
        self, parameters: Sequence[Tensor], each: Tensor, norm: Tensor, context: ClipContext
    ) -> ClipResult:
        """Scale by a half."""
        del context
        torch._foreach_mul_(gradients(parameters), 0.5)
        return ClipResult(norm, 0.5 * norm, 0.5 * each, ~norm.isfinite())
