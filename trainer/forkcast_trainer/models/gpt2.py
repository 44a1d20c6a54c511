"""GPT-2 in its published shapes, and a tiny one that trains on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forkcast_trainer.errors import TrainerError
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import Model
from forkcast_wire.manifest_file import looks_like_path


@dataclass(frozen=True)
class Shape:
    """layers, heads, width as in the GPT-2 paper's table 2; dropout probability."""

    layers: int
    heads: int
    width: int
    dropout: float = 0.1


SHAPES = {
    "gpt2-tiny": Shape(4, 4, 128, 0.0),
    "gpt2": Shape(12, 12, 768),
    "gpt2-medium": Shape(24, 16, 1024),
    "gpt2-large": Shape(36, 20, 1280),
}


def shape_of(model: Model) -> Shape:
    """The architecture's shape with the manifest's overrides. Raises TrainerError."""
    base = SHAPES[model.architecture]
    size = model.size
    shape = Shape(
        size.layers or base.layers,
        size.heads or base.heads,
        size.width or base.width,
        base.dropout if size.dropout is None else size.dropout,
    )
    if shape.width % shape.heads:
        raise TrainerError(
            "spec.model.size.width",
            f"{shape.width} is not a multiple of {shape.heads} heads",
            "change one of them",
        )
    return shape


def build(model: Model, vocabulary_size: int, positions: int, seed: int) -> nn.Module:
    """A GPT2LMHeadModel (scaled-dot-product attention, tied embeddings) on the CPU, float32: mixed
    precision is the forward pass's affair, the weights that learn are full.

    Weights are drawn from ``seed`` without disturbing the caller's generators, or loaded from the
    manifest's source. Raises TrainerError if the source does not fit.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if model.init == "Pretrained":
        return _pretrained(model, vocabulary_size, positions)
    shape = shape_of(model)
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=positions,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        resid_pdrop=shape.dropout,
        bos_token_id=vocabulary_size - 1,
        eos_token_id=vocabulary_size - 1,
        use_cache=False,
        attn_implementation="sdpa",  # taken by the base class
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = GPT2LMHeadModel(config)
    return built


def _pretrained(model: Model, vocabulary_size: int, positions: int) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import GPT2LMHeadModel

    source, dropout = model.source or "", model.size.dropout
    drops = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    changed: dict[str, Any] = {} if dropout is None else dict.fromkeys(drops, dropout)
    try:
        loaded = GPT2LMHeadModel.from_pretrained(
            source,
            attn_implementation="sdpa",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **changed,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if looks_like_path(source) and not Path(source).is_dir():
            raise TrainerError(
                "spec.model.source",
                f"no such folder: {Path(source).absolute()}",
                "give a folder in Hugging Face layout",
            ) from None
        first = first_line(error)
        raise TrainerError(
            "spec.model.source", f"{model.source}: {first}", "give a folder in Hugging Face layout"
        ) from None
    config = loaded.config
    own = {"layers": config.n_layer, "heads": config.n_head, "width": config.n_embd}
    for name, value in own.items():
        wish = getattr(model.size, name)
        if wish not in {None, value}:
            raise TrainerError(
                f"spec.model.size.{name}",
                f"{wish}, but the weights of {model.source} have {value}",
                "remove it, or train from scratch",
            )
    if config.vocab_size < vocabulary_size or config.n_positions < positions:
        raise TrainerError(
            "spec.model.source",
            f"{config.vocab_size} ids and {config.n_positions} positions are fewer than the "
            f"{vocabulary_size} and {positions} needed",
            "use its own tokenizer, or a shorter sequence",
        )
    loaded.config.use_cache = False
    built: nn.Module = loaded
    return built
