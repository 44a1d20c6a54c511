"""A language model of two blocks, and its batches: the same for every adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 32, 16, 2, 12, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        parts = self.attn(self.ln_1(x)).split(width, 2)
        q, k, v = (one.view(count, length, HEADS, -1).transpose(1, 2) for one in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(y.transpose(1, 2).reshape(x.shape))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Toy(nn.Module):
    """logits: [batch, length, vocabulary]. Dropout draws from torch's generator at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)

    def loss(self, ids: Tensor) -> Tensor:
        logits = self(ids[:, :-1])
        return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def batch(step: int, rank: int = 0) -> Tensor:
    """[BATCH, LENGTH + 1] ids of one micro-batch; no generator of the training's is used."""
    start = torch.arange(BATCH)[:, None] * (7 + 3 * rank) + step * 5
    return (start + torch.arange(LENGTH + 1)[None] ** 2) % VOCABULARY
