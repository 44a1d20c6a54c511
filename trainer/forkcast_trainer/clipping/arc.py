"""ARC, adaptive robust clipping (arXiv 2405.14432, algorithm 2), over the micro-batches of a step.

The paper clips workers' gradients before a robust aggregator. Here the "workers" are the n = world
x accumulation micro-batches, and the aggregator is the plain mean: of the paper's guarantees only
the bounded output carries over (the norm of the mean is at most the threshold), not robustness
against adversaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from forkcast_trainer.clipping.base import (
    MAX_NORM,
    ClipContext,
    ClippingPolicy,
    ClipResult,
    Parameter,
    gradients,
    norms_of,
    scale_to,
)
from forkcast_wire import beats


def threshold(norms: Tensor, count: Tensor, faulty: Tensor) -> Tensor:
    """The (k+1)-th largest norm, k = floor(2 (f/n) (n - f)), 0-d.

    norms: those that are finite among them count. count (n), faulty (f): 0-d whole numbers, n > 2f.
    """
    descending = norms.where(norms.isfinite(), -math.inf).sort(descending=True).values
    k = 2 * faulty * (count - faulty) // count.clamp(min=1)
    return descending[k.reshape(1)].reshape(())


class Arc(ClippingPolicy):
    """faulty: micro-batches tolerated as outliers, fewer than half; 0 = max(1, n/8). maxNorm:
    constant clip on top.
    """

    least_micro_batches = 3
    needs_micro_gradients = True
    takes = {"faulty": Parameter(0.0, least=0.0, whole=True), "maxNorm": MAX_NORM}

    def check(self, micro_batches: int) -> None:
        """Raises ValueError below three micro-batches, or where half of them may be faulty."""
        if micro_batches < self.least_micro_batches:
            raise ValueError(
                "spec.optimizer.clipping.policy: ARC needs processes x gradientAccumulationSteps "
                f">= {self.least_micro_batches}, got {micro_batches}; raise it, or use ZClip"
            )
        faulty = int(self.params["faulty"])
        if 2 * faulty >= micro_batches:
            raise ValueError(
                f"spec.optimizer.clipping.params.faulty: {faulty} is not fewer than half of "
                f"{micro_batches} micro-batches; give at most {(micro_batches - 1) // 2}"
            )

    def clip(self, parameters: Sequence[Tensor], context: ClipContext) -> ClipResult:
        """Clip each micro-batch's gradient to the threshold, drop non-finite ones, take the mean.

        The norms are those of the mean over all ranks, before of the micro-batches that are kept:
        every rank sees the same ones, and one lost micro-batch does not lose the step.
        """
        mine = torch.stack(
            [
                torch.stack(list(torch._foreach_norm(list(micro), 2, dtype=torch.float32))).norm()
                for micro in context.micro_gradients
            ]
        )
        norms = _gathered(mine)
        count = norms.isfinite().sum()
        own = int(self.params["faulty"])
        faulty = torch.full_like(count, own) if own else (count // 8).clamp(min=1)
        faulty = torch.minimum(faulty, ((count - 1) // 2).clamp(min=0))
        limit = threshold(norms, count, faulty)
        self._replace(parameters, context, mine, torch.full_like(limit, math.inf), count)
        norm = norms_of(parameters).norm()
        self._replace(parameters, context, mine, limit, count)
        each = norms_of(parameters)
        after = scale_to(parameters, each, each.norm(), self.params["maxNorm"])
        enough = count >= self.least_micro_batches
        norm = norm.where(enough, math.nan)
        return ClipResult(norm, after.clipped_norm, after.each, ~norm.isfinite())

    def _replace(
        self,
        parameters: Sequence[Tensor],
        context: ClipContext,
        norms: Tensor,
        limit: Tensor,
        count: Tensor,
    ) -> None:
        """Put the mean of the clipped micro-batch gradients, over all ranks, into ``.grad``. A gradient
        that is not finite is left out: zero times it would not be zero.
        """
        means = gradients(parameters)
        torch._foreach_zero_(means)
        share = torch.where(norms > limit, limit / norms, 1.0) / count
        for micro, norm, factor in zip(context.micro_gradients, norms, share, strict=True):
            kept = norm.isfinite()
            for mean, one in zip(means, micro, strict=True):
                mean.add_(torch.where(kept, one * factor, 0.0))
        if dist.is_initialized():
            with beats.during(beats.Phase.MEET):
                for mean in means:
                    dist.all_reduce(mean)


def _gathered(mine: Tensor) -> Tensor:
    if not dist.is_initialized():
        return mine
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    with beats.during(beats.Phase.MEET):
        dist.all_gather(parts, mine)
    return torch.cat(parts)
