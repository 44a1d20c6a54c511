"""GPT-2 whose queries and keys are normed head by head (Henry et al. 2020, arXiv 2010.04245; as layer
norm with a scale and no shift in Dehghani et al. 2023, arXiv 2302.05442): a logit is then at most the
product of two norms that weight decay or the loss would have to grow, whatever the matrices do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def norm_queries(module: Any) -> None:
    """Give every block of a GPT2LMHeadModel its two norms; all other weights and names stay."""
    for block in module.transformer.h:
        block.attn.c_attn = _NormedQueries(block.attn.c_attn, block.attn.num_heads)


class _NormedQueries(Conv1D):  # type: ignore[misc]
    """Width to queries, keys and values, [..., 3 * width], the first two normed."""

    def __init__(self, given: Conv1D, heads: int) -> None:
        nn.Module.__init__(self)
        self.nf, self.nx = given.nf, given.nx
        self.weight, self.bias = given.weight, given.bias
        self._heads = heads
        each = given.nx // heads
        self.q_norm = nn.LayerNorm(each, bias=False)
        self.k_norm = nn.LayerNorm(each, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        out: Tensor = super().forward(x)
        queries, keys, values = out.split(self.nx, dim=-1)
        normed = [
            norm(one.unflatten(-1, (self._heads, -1))).flatten(-2).to(values.dtype)
            for norm, one in ((self.q_norm, queries), (self.k_norm, keys))
        ]
        return torch.cat([*normed, values], dim=-1)
