"""Statistics from inside the model: attention entropy, attention logits, block activations.

They come from one extra forward pass over one sequence, in evaluation mode and without gradients,
so that neither the training kernels nor any random generator are touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Internals:
    """Per layer: normalised attention entropy in [0, 1], activation mean and sd; and the largest
    attention logit.
    """

    attention_entropy: tuple[float, ...]
    attention_logit_max: float
    activation_mean: tuple[float, ...]
    activation_sd: tuple[float, ...]


#: Per layer, in the order of `Internals`; a value's name is that of its field and its layer.
_LAYERED: Final = ("attention_entropy", "activation_mean", "activation_sd")


@torch.no_grad()
def sample(model: nn.Module, sequence: Tensor) -> dict[str, Tensor]:
    """Look inside a GPT-2 on one sequence of ids, shape [T]; empty for another model. 0-d values on the
    device, by name and layer. The model's mode is restored.
    """
    if not hasattr(model, "transformer"):
        return {}
    qkv: list[Tensor] = []
    blocks: list[Tensor] = []
    handles: list[RemovableHandle] = []
    heads = int(model.config.n_head)  # type: ignore[union-attr, arg-type]
    for block in model.transformer.h:  # type: ignore[union-attr]
        handles.append(block.attn.c_attn.register_forward_hook(lambda _m, _i, o: qkv.append(o)))
        handles.append(
            block.register_forward_hook(
                lambda _m, _i, o: blocks.append(o[0] if isinstance(o, tuple) else o)
            )
        )
    training = model.training
    model.eval()
    try:
        model(sequence[None])
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    pairs = [_attention(one[0].float(), heads) for one in qkv]
    wide = [block.float() for block in blocks]
    values = {"attention_logit_max": torch.stack([top for _, top in pairs]).max()}
    layers = (
        [entropy for entropy, _ in pairs],
        [block.mean() for block in wide],
        [block.std() for block in wide],
    )
    for name, each in zip(_LAYERED, layers, strict=True):
        values |= {f"{name}:{layer}": value for layer, value in enumerate(each)}
    return values


def read(numbers: Mapping[str, float]) -> Internals | None:
    """What `sample` gave, as numbers; None if it was not among them."""
    if "attention_logit_max" not in numbers:
        return None
    entropies, means, deviations = (
        tuple(value for key, value in numbers.items() if key.startswith(f"{name}:"))
        for name in _LAYERED
    )
    return Internals(entropies, numbers["attention_logit_max"], means, deviations)


def _attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Mean over heads and rows of the entropy over log(visible keys), and the largest logit.
    qkv: [T, 3C] as GPT-2's c_attn gives it. The first row sees one key and is left out.
    """
    length, width = qkv.shape[0], qkv.shape[1] // 3
    query, key, _ = qkv.split(width, dim=1)
    query = query.view(length, heads, -1).transpose(0, 1)
    key = key.view(length, heads, -1).transpose(0, 1)
    logits = query @ key.transpose(1, 2) / math.sqrt(width // heads)
    hidden = torch.ones(length, length, dtype=torch.bool, device=qkv.device).triu(1)
    logits = logits.masked_fill(hidden, -torch.inf)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(hidden, 0.0)).sum(-1)[:, 1:]
    visible = torch.arange(2, length + 1, device=qkv.device).float().log()
    return (entropy / visible).mean(), logits.max()
