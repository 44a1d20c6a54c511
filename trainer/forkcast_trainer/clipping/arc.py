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
    global_norm,
    gradients,
)
from forkcast_wire import beats


def threshold(norms: Sequence[float], faulty: int) -> float:
    """The (k+1)-th largest norm, k = floor(2 (f/n) (n - f)). Raises ValueError unless n > 2f."""
    n = len(norms)
    if not 0 <= faulty < n / 2:
        raise ValueError(f"ARC: needs more than 2 x {faulty} norms; got {n}")
    k = 2 * faulty * (n - faulty) // n
    return sorted(norms, reverse=True)[k]


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
        local = [
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g.float() for g in micro])))
            for micro in context.micro_gradients
        ]
        mine = torch.stack(local)
        norms = _gathered(mine)
        finite = [x for x in norms.tolist() if math.isfinite(x)]
        if len(finite) < self.least_micro_batches:
            lost = torch.full_like(norms[0], math.nan)
            return ClipResult(lost, lost, skip=True)
        faulty = int(self.params["faulty"]) or max(1, len(finite) // 8)
        limit = threshold(finite, min(faulty, (len(finite) - 1) // 2))
        self._replace(parameters, context, mine, math.inf, len(finite))
        norm = global_norm(parameters)
        self._replace(parameters, context, mine, limit, len(finite))
        after = global_norm(parameters)
        top = self.params["maxNorm"]
        factor = torch.clamp(top / (after + 1e-6), max=1.0)
        torch._foreach_mul_(gradients(parameters), factor)
        return ClipResult(norm, after * factor)

    def _replace(
        self,
        parameters: Sequence[Tensor],
        context: ClipContext,
        norms: Tensor,
        limit: float,
        count: int,
    ) -> None:
        """Put the mean of the clipped micro-batch gradients, over all ranks, into ``.grad``."""
        means = gradients(parameters)
        torch._foreach_zero_(means)
        for micro, norm in zip(context.micro_gradients, norms.tolist(), strict=True):
            if math.isfinite(norm):
                factor = (limit / norm if norm > limit else 1.0) / count
                torch._foreach_add_(means, list(micro), alpha=factor)
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
