"""A GPT-2 with tied embeddings, with or without QK-norm, and what is measured inside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 50_257
GROUPS = ("embedding", "attention", "mlp", "norm", "other")


@dataclass(frozen=True)
class Size:
    """A model's shape, its tuned rate, and the tokens in each of a step's two micro-batches."""

    layers: int
    width: int
    heads: int
    rate: float
    tokens: int
    vocabulary: int = VOCABULARY


SIZES = {
    "toy": Size(2, 64, 2, 3e-3, 128, 512),
    "51M": Size(8, 512, 8, 1e-3, 8192),
    "124M": Size(12, 768, 12, 6e-4, 4096),
}


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size, qk_norm: bool) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nn.Parameter(torch.ones(width // size.heads))
            self.k_norm = nn.Parameter(torch.ones(width // size.heads))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [B, heads, T, head width]."""
        rows, length, width = x.shape
        split = self.qkv(self.norm_1(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q = functional.rms_norm(q.float(), q.shape[-1:], self.q_norm, 1e-6).to(v.dtype)
            k = functional.rms_norm(k.float(), k.shape[-1:], self.k_norm, 1e-6).to(v.dtype)
        return q, k, v

    def after_attention(self, x: Tensor, seen: Tensor) -> Tensor:
        """The residual stream after this block; ``seen``: [B, heads, T, head width]."""
        x = x + self.attn_out(seen.transpose(1, 2).reshape(x.shape))
        wide = functional.gelu(self.mlp_in(self.norm_2(x)), approximate="tanh")
        mixed: Tensor = self.mlp_out(wide)
        return x + mixed

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after this block, [B, T, width]."""
        q, k, v = self.query_key_value(x)
        return self.after_attention(
            x, functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        )


class GPT2(nn.Module):
    """GPT-2 with tied embeddings and no dropout."""

    def __init__(self, size: Size, qk_norm: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(1024, size.width)
        self.blocks = nn.ModuleList(Block(size, qk_norm) for _ in range(size.layers))
        self.norm_out = nn.LayerNorm(size.width)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(weight)
                continue
            deep = name.endswith(("attn_out.weight", "mlp_out.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * size.layers) if deep else 1.0))

    def embed(self, ids: Tensor) -> Tensor:
        """[B, T] ids as the first residual stream, [B, T, width]."""
        seen: Tensor = self.tokens(ids)
        return seen + self.positions.weight[: ids.shape[1]]

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, nats/token, and mean log Z of the output's softmax."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm_out(x), self.tokens.weight).float()
        log_z = logits.logsumexp(-1)
        loss = (log_z - logits.gather(-1, targets[..., None]).squeeze(-1)).mean()
        return loss, log_z.detach().mean()


def group_of(name: str) -> str:
    """The group of StepStats that a parameter's gradient norm counts to."""
    if name.startswith(("tokens", "positions")):
        return "embedding"
    if "norm" in name:
        return "norm"
    return "attention" if "qkv" in name or "attn" in name else "mlp"


@torch.no_grad()
def internals(model: GPT2, ids: Tensor) -> Tensor:
    """[3 layers + 1]: attention entropy over log(visible keys), activation mean and sd of each
    layer, and the largest attention logit, on one sequence [T].
    """
    x, length = model.embed(ids[None]), len(ids)
    hidden = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
    visible = torch.arange(2, length + 1, device=ids.device).float().log()
    entropies, means, deviations, tops = [], [], [], []
    for block in model.blocks:
        q, k, v = block.query_key_value(x)  # type: ignore[operator]
        logits = (q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1]))[0]
        tops.append(logits.masked_fill(hidden, -torch.inf).max())
        log_p = logits.masked_fill(hidden, -torch.inf).log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(hidden, 0.0)).sum(-1)[:, 1:]
        entropies.append((entropy / visible).mean())
        x = block.after_attention(x, log_p.exp().to(v.dtype)[None] @ v)  # type: ignore[operator]
        means.append(x.float().mean())
        deviations.append(x.float().std())
    return torch.stack([*entropies, *means, *deviations, torch.stack(tops).max()])
