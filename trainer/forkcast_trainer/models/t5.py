"""T5 in its published shapes, and a tiny one that trains on a CPU: an encoder and a decoder, taught by
span corruption.

Sentinels: the tokenizer's own <extra_id_0>, <extra_id_1>, ..., as T5's has them. With another tokenizer
they are the 100 ids above its own, counted down as T5 counts them: sentinel k of a tokenizer of n ids
is n + 99 - k. A model from scratch has room for these 100 whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import hugging_face
from forkcast_trainer.models.family import Family, Shape
from forkcast_trainer.models.parts import Head, Special, Taps
from forkcast_wire.manifest import Model

if TYPE_CHECKING:
    from torch import Tensor, nn

SENTINELS: Final = 100


@dataclass(frozen=True)
class Size:
    """layers: of the encoder, and as many of the decoder. inner: width of the MLPs. key: width of a
    head. As in Raffel et al. 2020, section 3.7.
    """

    layers: int
    heads: int
    width: int
    inner: int
    key: int = 64
    dropout: float = 0.1


SIZES: Final = {
    "t5-tiny": Size(2, 4, 64, 256, 16, 0.0),
    "t5-small": Size(6, 8, 512, 2048),
    "t5-base": Size(12, 12, 768, 3072),
    "t5-large": Size(24, 16, 1024, 4096),
}
_PUBLISHED: Final = {name: one for name, one in SIZES.items() if name != "t5-tiny"}
#: Ids of the published models, which are padded, and of their tokenizer.
_PUBLISHED_IDS, _TOKENIZER_IDS = 32128, 32100
_BUCKETS: Final = 32
_CONFIG = ("num_layers", "num_heads", "d_model", "d_ff", "d_kv", "vocab_size")


class T5(Family):
    """Raffel et al. 2020: relative positions, so that a sequence may have any length."""

    objective = "SpanCorruption"
    reads_sentinels = True

    @property
    def names(self) -> Sequence[str]:
        """The published sizes and a tiny one."""
        return tuple(SIZES)

    def vocabulary_of(self, name: str) -> int | None:
        """32,100 for its own models."""
        return _TOKENIZER_IDS if _published(name) else None

    def shape(self, model: Model, vocabulary: int | None, positions: int) -> Shape | None:
        """See `Family`; pretrained, what the folder's config.json or the published name says."""
        if model.init == "FromScratch":
            size = _size_of(model)
            return None if vocabulary is None else _shape(size, positions, vocabulary + SENTINELS)
        source = model.source or ""
        config = hugging_face.read_config(source)
        if config is None:
            known = _published(source)
            return _shape(known, positions, _PUBLISHED_IDS) if known else None
        numbers = hugging_face.whole_numbers(config, *_CONFIG)
        if numbers is None:
            return None
        return _shape(
            Size(*numbers[:5]),
            positions,
            numbers[5],
            decoder=config.get("num_decoder_layers"),
            gated=str(config.get("feed_forward_proj", "")).startswith("gated-"),
            tied=config.get("tie_word_embeddings", True),
        )

    def build(
        self, model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
    ) -> nn.Module:
        """A T5ForConditionalGeneration with scaled-dot-product attention."""
        from transformers import T5Config, T5ForConditionalGeneration

        if model.init == "Pretrained":
            return _pretrained(model, vocabulary, positions)
        size = _size_of(model)
        end = vocabulary - 1 if end is None else end
        config = T5Config(
            vocab_size=vocabulary + SENTINELS,
            num_layers=size.layers,
            num_heads=size.heads,
            d_model=size.width,
            d_ff=size.inner,
            d_kv=size.key,
            dropout_rate=size.dropout,
            pad_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=end,
            attn_implementation="sdpa",  # taken by the base class
        )
        return hugging_face.random_module(T5ForConditionalGeneration, config, seed)

    def hidden(self, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The decoder's, scaled as the head wants it."""
        read = module.encoder(input_ids=inputs["input_ids"]).last_hidden_state
        hidden: Tensor = module.decoder(
            input_ids=inputs["decoder_input_ids"], encoder_hidden_states=read, use_cache=False
        ).last_hidden_state
        return hidden * module.model_dim**-0.5 if module.config.scale_decoder_outputs else hidden

    def head(self, module: Any) -> Head:
        """The tied embedding, or its own."""
        return Head(module.lm_head.weight)

    def taps(self, module: Any) -> Taps:
        """Encoder, then decoder; of the decoder the attention to itself."""
        blocks = [*module.encoder.block, *module.decoder.block]
        attention = [one.layer[0].SelfAttention for one in blocks]
        return Taps(blocks, attention, module.decoder.final_layer_norm, module.lm_head)

    def special(self, module: Any, vocabulary: int, end: int, own: Sequence[int]) -> Special:
        """See the module's text. Raises TrainerError if pretrained weights have no ids to spare."""
        ids = module.config.vocab_size
        if not own and ids < vocabulary + SENTINELS:
            raise TrainerError(
                "spec.data.tokenizer",
                f"it has no <extra_id_0>, and of the weights' {ids} ids only {ids - vocabulary} are "
                f"free for {SENTINELS} sentinels",
                "use the weights' own tokenizer",
            )
        above = range(vocabulary + SENTINELS - 1, vocabulary - 1, -1)
        told = (getattr(module.config, "decoder_start_token_id", None), module.config.pad_token_id)
        start = next(one for one in (*told, end) if one is not None)
        return Special(start, end, tuple(own or above))

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Of the embedding; the positions have none."""
        return shapes["shared.weight"][0] - SENTINELS, 1


def _published(name: str) -> Size | None:
    return _PUBLISHED.get(name.removeprefix("google-t5/"))


def _shape(
    size: Size,
    positions: int,
    vocabulary: int,
    *,
    decoder: int | None = None,
    gated: bool = False,
    tied: bool = True,
) -> Shape:
    width, decoders = size.width, size.layers if decoder is None else decoder
    attention = 4 * width * size.heads * size.key
    mlp = (3 if gated else 2) * width * size.inner
    encoder = size.layers * (attention + mlp + 2 * width)
    decoding = decoders * (2 * attention + mlp + 3 * width)
    embeddings = (1 if tied else 2) * vocabulary * width
    return Shape(
        layers=size.layers + decoders,
        heads=size.heads,
        width=width,
        positions=positions,
        vocabulary=vocabulary,
        parameters=embeddings + encoder + decoding + 2 * (width + _BUCKETS * size.heads),
        matrices=(size.layers + 2 * decoders) * attention + (size.layers + decoders) * mlp,
    )


def _size_of(model: Model) -> Size:
    """The architecture's size with the manifest's overrides: an MLP is four times as wide as the
    model, and heads divide its width, if either is given. Raises TrainerError.
    """
    base, given = SIZES[model.architecture], model.size
    width, heads = given.width or base.width, given.heads or base.heads
    if width % heads:
        raise TrainerError(
            "spec.model.size.width",
            f"{width} is not a multiple of {heads} heads",
            "change one of them",
        )
    return Size(
        given.layers or base.layers,
        heads,
        width,
        4 * given.width if given.width else base.inner,
        width // heads if given.width or given.heads else base.key,
        base.dropout if given.dropout is None else given.dropout,
    )


def _pretrained(model: Model, vocabulary: int, positions: int) -> nn.Module:
    from transformers import T5ForConditionalGeneration

    source, size = model.source or "", model.size
    changed = {} if size.dropout is None else {"dropout_rate": size.dropout}
    loaded: Any = hugging_face.pretrained_module(
        T5ForConditionalGeneration, "spec.model.source", source, **changed
    )
    config = loaded.config
    hugging_face.refuse_other_sizes(
        model, layers=config.num_layers, heads=config.num_heads, width=config.d_model
    )
    hugging_face.refuse_too_small(
        "spec.model.source", config.vocab_size, positions, vocabulary, positions
    )
    built: nn.Module = loaded
    return built
