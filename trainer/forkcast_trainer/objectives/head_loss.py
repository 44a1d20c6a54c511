"""Cross-entropy of a language model's head without its logits: [rows, vocabulary] in chunks of rows.

The gradient is computed where the logits are, in the forward pass, and scaled in the backward pass:
a chunk's logits are made once and dropped, so that peak memory hangs on the chunk, not on the batch.
Inside, the matrix gets columns up to a multiple of 64, whose logits are -inf: they take no
probability and no gradient.

z-loss (Chowdhery et al. 2022, PaLM, section 5): coefficient * log(Z)^2 is added to what is
differentiated. The value that is returned stays the cross-entropy, which is what runs compare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from forkcast_trainer.logit_chunks import chunk_rows, padded
from forkcast_trainer.models.parts import Head

#: A target that is none: no loss, no gradient.
IGNORED = -100


class Loss(NamedTuple):
    """value: 0-d float32, mean cross-entropy of the rows with a target, nats/token; its gradient is
    the objective's, z-loss included. log_z: [rows] float32, detached; log of the softmax's sum.
    """

    value: Tensor
    log_z: Tensor


def head_loss(
    hidden: Tensor, head: Head, targets: Tensor, *, z_loss: float = 0.0, fused: bool = False
) -> Loss:
    """hidden: [..., width]. targets: [...] ids, IGNORED for none. The product is in autocast's dtype,
    the softmax in float32. fused: compile what is done element by element.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    device = hidden.device.type
    half = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if half else head.weight.dtype
    differentiated = torch.is_grad_enabled()
    with torch.autocast(device, enabled=False):
        value, log_z = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            rows, head.weight, head.bias, flat, dtype, z_loss, fused, differentiated
        )
    return Loss(value, log_z)


def logits_loss(logits: Tensor, targets: Tensor, *, z_loss: float = 0.0) -> Loss:
    """The same of logits that exist, [..., vocabulary]: of a model whose head is more than a product."""
    flat, wide = targets.reshape(-1), logits.float().reshape(-1, logits.shape[-1])
    log_z = wide.logsumexp(-1)
    kept = flat != IGNORED
    picked = wide.gather(1, flat.clamp_min(0)[:, None])[:, 0]
    count = kept.sum().clamp_min(1)
    value = torch.where(kept, log_z - picked, 0).sum() / count
    if z_loss:
        penalty = z_loss * torch.where(kept, log_z**2, 0).sum() / count
        value = value + (penalty - penalty.detach())
    return Loss(value, log_z.detach())


def _softmax(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk's logits [rows, columns] the cross-entropies [rows], log Z [rows], and the gradient
    of their sum with z-loss, in the logits' dtype. The logits may be overwritten.
    """
    wide = logits.float()
    log_z = wide.logsumexp(-1)
    kept = targets != IGNORED
    column = targets.clamp_min(0)[:, None]
    entropies = torch.where(kept, log_z - wide.gather(1, column)[:, 0], 0)
    factor = torch.where(kept, 1 + 2 * z_loss * log_z, 0)
    if torch.compiler.is_compiling():  # one kernel, without a scatter between
        columns = torch.arange(wide.shape[1], device=wide.device)
        hit = (columns == column) & kept[:, None]
        probabilities = (wide - log_z[:, None]).exp() * factor[:, None]
        return entropies, log_z, (probabilities - hit.float()).to(logits.dtype)
    probabilities = wide.sub_(log_z[:, None]).exp_().mul_(factor[:, None])
    probabilities.scatter_add_(1, column, -kept.float()[:, None])
    return entropies, log_z, probabilities.to(logits.dtype)


@cache
def _compiled() -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_softmax)


class _HeadLoss(torch.autograd.Function):
    """(mean cross-entropy, log Z); see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        z_loss: float,
        fused: bool,  # noqa: FBT001  apply takes no keywords
        differentiated: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor]:
        """hidden: [rows, width]. weight: [vocabulary, width]."""
        rows, vocabulary = len(hidden), len(weight)
        more = padded(vocabulary) - vocabulary
        matrix = functional.pad(weight.to(dtype), (0, 0, 0, more))
        offsets = None if bias is None else functional.pad(bias.to(dtype), (0, more))
        softmax = _compiled() if fused else _softmax
        entropies = torch.empty(rows, device=hidden.device)
        log_z = torch.empty(rows, device=hidden.device)
        into = _Gradients(hidden, matrix, offsets) if differentiated else None
        size = chunk_rows(rows, vocabulary, hidden.device.type)
        for first in range(0, rows, size):
            part = slice(first, first + size)
            inputs = hidden[part].to(dtype)
            logits = functional.linear(inputs, matrix, offsets)
            logits[:, vocabulary:] = -torch.inf
            entropies[part], log_z[part], gradient = softmax(logits, targets[part], z_loss)
            del logits
            if into is not None:
                into.add(part, inputs, gradient)
        count = (targets != IGNORED).sum().clamp_min(1)
        if into is not None:
            of_bias = None if into.bias is None else into.bias[:vocabulary]
            ctx.save_for_backward(count, into.hidden, into.matrix[:vocabulary], of_bias)
            ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(log_z)
        return entropies.sum() / count, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass left: under fp16 `upstream` is the loss scale."""
        count, of_hidden, of_weight, of_bias = ctx.saved_tensors
        scale = upstream / count
        dtype, of = ctx.dtypes
        return (
            (of_hidden.float() * scale).to(dtype),  # a 0-d factor does not widen a tensor
            (of_weight * scale).to(of),
            None if of_bias is None else (of_bias * scale).to(of),
            *(None,) * 5,
        )


class _Gradients:
    """Sums over chunks, not yet divided by the rows: of unit size, so that fp16 holds them without
    a loss scale. Those of the matrix and the bias are float32.
    """

    def __init__(self, hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
        self.hidden = torch.empty(hidden.shape, dtype=matrix.dtype, device=hidden.device)
        self.matrix = torch.zeros(matrix.shape, dtype=torch.float32, device=hidden.device)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        self._factor = matrix

    def add(self, part: slice, inputs: Tensor, gradient: Tensor) -> None:
        """inputs: [rows, width], gradient: [rows, columns], both in the product's dtype."""
        self.hidden[part] = gradient @ self._factor
        turned = gradient.t()
        if gradient.is_cuda and gradient.dtype is not torch.float32:
            self.matrix = torch.addmm(self.matrix, turned, inputs, out_dtype=torch.float32)
        else:  # a CPU has no product with another dtype's sum
            self.matrix.addmm_(turned.float(), inputs.float())
        if self.bias is not None:
            self.bias += gradient.float().sum(0)
