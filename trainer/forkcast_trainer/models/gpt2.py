"""GPT-2 in its published shapes, and a tiny one that trains on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import hugging_face
from forkcast_trainer.models.family import Family, Shape
from forkcast_trainer.models.parts import Head, Taps
from forkcast_wire.manifest import Model

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """layers, heads, width as in the GPT-2 paper's table 2; dropout probability."""

    layers: int
    heads: int
    width: int
    dropout: float = 0.1


SIZES: Final = {
    "gpt2-tiny": Size(4, 4, 128, 0.0),
    "gpt2": Size(12, 12, 768),
    "gpt2-medium": Size(24, 16, 1024),
    "gpt2-large": Size(36, 20, 1280),
    "gpt2-xl": Size(48, 25, 1600),
}
#: The weights on the hub, by their names there.
_PUBLISHED: Final = {name: one for name, one in SIZES.items() if name != "gpt2-tiny"} | {
    "distilgpt2": Size(6, 12, 768)
}
_PUBLISHED_IDS, _PUBLISHED_POSITIONS = 50257, 1024
_CONFIG = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


class GPT2(Family):
    """Radford et al. 2019: decoder, learned positions, tied embeddings."""

    norms_queries = True

    @property
    def names(self) -> Sequence[str]:
        """The published sizes and a tiny one."""
        return tuple(SIZES)

    def vocabulary_of(self, name: str) -> int | None:
        """50,257 for its own models."""
        return _PUBLISHED_IDS if _published(name) else None

    def shape(self, model: Model, vocabulary: int | None, positions: int) -> Shape | None:
        """See `Family`; pretrained, what the folder's config.json or the published name says."""
        if model.init == "FromScratch":
            size = _size_of(model)
            if vocabulary is None:
                return None
            return _shape(size, positions, vocabulary, qk_norm=model.qk_norm)
        source = model.source or ""
        config = hugging_face.read_config(source)
        if config is None:
            known = _published(source)
            return _shape(known, _PUBLISHED_POSITIONS, _PUBLISHED_IDS) if known else None
        return shape_of(config)

    def build(
        self, model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
    ) -> nn.Module:
        """A GPT2LMHeadModel with scaled-dot-product attention."""
        from transformers import GPT2Config, GPT2LMHeadModel

        if model.init == "Pretrained":
            return _pretrained(model, vocabulary, positions)
        size = _size_of(model)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_layer=size.layers,
            n_head=size.heads,
            n_embd=size.width,
            embd_pdrop=size.dropout,
            attn_pdrop=size.dropout,
            resid_pdrop=size.dropout,
            bos_token_id=vocabulary - 1 if end is None else end,
            eos_token_id=vocabulary - 1 if end is None else end,
            use_cache=False,
            attn_implementation="sdpa",  # taken by the base class
        )
        module = hugging_face.random_module(GPT2LMHeadModel, config, seed)
        if model.qk_norm:
            from forkcast_trainer.models.qk_norm import norm_queries

            norm_queries(module)
        return module

    def hidden(self, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """After the last norm."""
        hidden: Tensor = module.transformer(**inputs).last_hidden_state
        return hidden

    def head(self, module: Any) -> Head:
        """The tied embedding."""
        return Head(module.lm_head.weight)

    def taps(self, module: Any) -> Taps:
        """Every block."""
        body, blocks = module.transformer, list(module.transformer.h)
        return Taps(blocks, [one.attn for one in blocks], body.ln_f, module.lm_head)

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Of the two embeddings."""
        return shapes["transformer.wte.weight"][0], shapes["transformer.wpe.weight"][0]


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """By the entries of a config.json; None if some are missing."""
    numbers = hugging_face.whole_numbers(config, *_CONFIG)
    return _shape(Size(*numbers[:3]), *numbers[3:]) if numbers else None


def _published(name: str) -> Size | None:
    return _PUBLISHED.get(name.removeprefix("openai-community/"))


def _shape(size: Size, positions: int, vocabulary: int, *, qk_norm: bool = False) -> Shape:
    width = size.width
    block = 12 * width * width + 13 * width + (2 * width // size.heads if qk_norm else 0)
    return Shape(
        layers=size.layers,
        heads=size.heads,
        width=width,
        positions=positions,
        vocabulary=vocabulary,
        parameters=(vocabulary + positions + 2) * width + size.layers * block,
        matrices=size.layers * 12 * width * width,
    )


def _size_of(model: Model) -> Size:
    """The architecture's size with the manifest's overrides. Raises TrainerError."""
    base, given = SIZES[model.architecture], model.size
    size = Size(
        given.layers or base.layers,
        given.heads or base.heads,
        given.width or base.width,
        base.dropout if given.dropout is None else given.dropout,
    )
    if size.width % size.heads:
        raise TrainerError(
            "spec.model.size.width",
            f"{size.width} is not a multiple of {size.heads} heads",
            "change one of them",
        )
    return size


def _pretrained(model: Model, vocabulary: int, positions: int) -> nn.Module:
    from transformers import GPT2LMHeadModel

    source, size = model.source or "", model.size
    drops = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    changed = {} if size.dropout is None else dict.fromkeys(drops, size.dropout)
    loaded: Any = hugging_face.pretrained_module(
        GPT2LMHeadModel, "spec.model.source", source, **changed
    )
    config = loaded.config
    hugging_face.refuse_other_sizes(
        model, layers=config.n_layer, heads=config.n_head, width=config.n_embd
    )
    hugging_face.refuse_too_small(
        "spec.model.source", config.vocab_size, config.n_positions, vocabulary, positions
    )
    config.use_cache = False
    built: nn.Module = loaded
    return built
