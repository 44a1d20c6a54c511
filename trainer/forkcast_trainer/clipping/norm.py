"""Clipping to a fixed global norm (Pascanu et al., 2013, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from forkcast_trainer.clipping.base import (
    MAX_NORM,
    ClipContext,
    ClippingPolicy,
    ClipResult,
    scale_to,
)


class Norm(ClippingPolicy):
    """maxNorm: limit on the global L2 norm."""

    takes = {"maxNorm": MAX_NORM}

    def clip_by(
        self, parameters: Sequence[Tensor], each: Tensor, norm: Tensor, context: ClipContext
    ) -> ClipResult:
        """Scale to the limit."""
        del context
        return scale_to(parameters, each, norm, self.params["maxNorm"])
