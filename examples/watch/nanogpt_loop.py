"""A loop like nanoGPT's, watched: the lines with `watch` are all that is added.

python examples/watch/nanogpt_loop.py --unstable
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import forkcast

TEXT = "the quick brown fox jumps over the lazy dog. " * 200
BLOCK, BATCH, WIDTH, HEADS, LAYERS = 32, 8, 32, 2, 2


class Block(nn.Module):
    """Attention and MLP, each after a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, block, width]."""
        count, length, _ = x.shape
        parts = self.c_attn(self.ln_1(x)).split(WIDTH, 2)
        q, k, v = (one.view(count, length, HEADS, -1).transpose(1, 2) for one in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Logits of the next byte."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, nats/token. x, y: [batch, block]."""
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def main() -> None:
    """Train; with --unstable the learning rate is 300 times too high from the last fifth on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", default="runs/nanogpt-loop")
    parser.add_argument("--unstable", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(1337)
    torch.set_num_threads(1)
    letters = sorted(set(TEXT))
    data = torch.tensor([letters.index(one) for one in TEXT])
    model = GPT(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    watch = forkcast.watch(  # line 1
        model,
        optimizer,
        folder=given.folder,
        total_steps=given.steps,
        tokens_per_step=BATCH * BLOCK,
    )
    for step in range(given.steps):
        rate = 1e-3 * (0.55 + 0.45 * math.cos(math.pi * step / given.steps))
        wild = given.unstable and step >= given.steps * 4 // 5
        for group in optimizer.param_groups:
            group["lr"] = rate * (300 if wild else 1)
        places = torch.randint(len(data) - BLOCK, (BATCH,))
        x = torch.stack([data[i : i + BLOCK] for i in places.tolist()])
        y = torch.stack([data[i + 1 : i + 1 + BLOCK] for i in places.tolist()])
        loss = model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.step(loss)  # line 2
    watch.close()  # line 3
    print(f"{len(watch.events)} events; forkcast status {watch.folder}")


if __name__ == "__main__":
    main()
