"""The sizes of a model without building it: parameters and bytes from the shapes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast_wire.manifest import Data, Dtype, StressorType, TrainingRunSpec
from forkcast_wire.manifest_file import ManifestError

#: layers, heads, width of the trainer's model shelf (GPT-2 paper, table 2); a test compares them.
SHAPES = {
    "gpt2-tiny": (4, 4, 128),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
}
_BYTES_VOCABULARY = 257
#: GPT-2's published weights and vocabulary under their names on the hub.
_PUBLISHED = {
    **{name: SHAPES[name] for name in ("gpt2", "gpt2-medium", "gpt2-large")},
    "gpt2-xl": (48, 25, 1600),
    "distilgpt2": (6, 12, 768),
}
_PUBLISHED_VOCABULARY, _PUBLISHED_POSITIONS = 50257, 1024
_END_OF_TEXT = "<|endoftext|>"
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """layers, width, positions: of the model. vocabulary: ids. parameters: tied embedding once.
    state_bytes: weights and both Adam moments in fp32. memory_bytes: an estimate of one training
    process, the state, the gradients, and the activations of one micro-batch.
    """

    layers: int
    width: int
    heads: int
    positions: int
    vocabulary: int
    parameters: int
    state_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Shape:
    layers: int
    heads: int
    width: int
    positions: int
    vocabulary: int


def plan_model(spec: TrainingRunSpec) -> ModelPlan | None:
    """The sizes; None if the architecture or the vocabulary cannot be known from here."""
    shape = _pretrained(spec) if spec.model.init == "Pretrained" else _from_scratch(spec)
    if shape is None:
        return None
    width = shape.width
    block = 12 * width * width + 13 * width
    parameters = (shape.vocabulary + shape.positions + 2) * width + shape.layers * block
    state = 3 * _FP32 * parameters
    activations = _activations(spec, shape.layers, width, shape.vocabulary)
    return ModelPlan(
        layers=shape.layers,
        width=width,
        heads=shape.heads,
        positions=shape.positions,
        vocabulary=shape.vocabulary,
        parameters=parameters,
        state_bytes=state,
        memory_bytes=state + _FP32 * parameters + activations,
    )


def _from_scratch(spec: TrainingRunSpec) -> _Shape | None:
    """The shelf's shape with the manifest's overrides, sized for the run's own text."""
    shape, size = SHAPES.get(spec.model.architecture), spec.model.size
    vocabulary = vocabulary_size(spec.data)
    if shape is None or vocabulary is None:
        return None
    heads, width = size.heads or shape[1], size.width or shape[2]
    if width % heads:
        raise ManifestError(
            "spec.model.size.width",
            f"{width} is not a multiple of {heads} heads",
            "change one of them",
        )
    long = any(one.type is StressorType.LONG_SEQUENCE for one in spec.stressors)
    return _Shape(
        layers=size.layers or shape[0],
        heads=heads,
        width=width,
        positions=spec.data.sequence_length * (4 if long else 1),
        vocabulary=vocabulary,
    )


def _pretrained(spec: TrainingRunSpec) -> _Shape | None:
    """What the weights' own config.json says, or what is known of a published name."""
    source = spec.model.source or ""
    config = _json(Path(source) / "config.json")
    if config is not None:
        names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        numbers = [config.get(name) for name in names]
        whole = [one for one in numbers if isinstance(one, int) and one > 0]
        return _Shape(*whole) if len(whole) == len(names) else None
    shape = _PUBLISHED.get(source.removeprefix("openai-community/"))
    return shape and _Shape(*shape, _PUBLISHED_POSITIONS, _PUBLISHED_VOCABULARY)


def _activations(spec: TrainingRunSpec, layers: int, width: int, vocabulary: int) -> int:
    """Bytes kept for the backward pass: about 16 tensors of [tokens, width] a block (Korthikanti et
    al. 2022 count 34 bytes a token and width in half precision, without the attention matrix, which
    sdpa does not keep), and the logits with their gradient in fp32.
    """
    tokens = spec.training.micro_batch_size * spec.data.sequence_length
    half = spec.model.dtype in (Dtype.BFLOAT16, Dtype.FLOAT16)
    kept = 1 if spec.model.gradient_checkpointing else 17
    return tokens * (kept * (2 if half else _FP32) * width * layers + 3 * _FP32 * vocabulary)


def vocabulary_size(data: Data) -> int | None:
    """Ids of the manifest's tokenizer, where they can be told without loading it: one more than
    its highest, and one more still where it has no end-of-text of its own.
    """
    if data.tokenizer == "bytes":
        return _BYTES_VOCABULARY
    folder = Path(data.tokenizer)
    if not folder.is_dir():
        known = data.tokenizer.removeprefix("openai-community/") in _PUBLISHED
        return _PUBLISHED_VOCABULARY if known else None
    document = _json(folder / "tokenizer.json")
    if document is not None:
        return _of_tokenizer_json(document, _json(folder / "tokenizer_config.json") or {})
    ids = _json(folder / "vocab.json")
    if not ids or not all(isinstance(one, int) for one in ids.values()):
        return None
    return max(int(one) for one in ids.values()) + 1 + (_END_OF_TEXT not in ids)


def _of_tokenizer_json(document: dict[str, Any], config: dict[str, Any]) -> int | None:
    """From the file of the tokenizers library; a Unigram vocabulary is a list, others a mapping."""
    try:
        vocabulary = document["model"]["vocab"]
        listed = isinstance(vocabulary, list)
        ids = set(range(len(vocabulary)) if listed else vocabulary.values())
        ids |= {one["id"] for one in document.get("added_tokens") or []}
        return max(int(one) for one in ids) + 1 + (config.get("eos_token") is None)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def tokens_per_step(spec: TrainingRunSpec) -> int:
    """Tokens that one optimizer step sees, all processes."""
    training = spec.training
    sequences = training.micro_batch_size * training.gradient_accumulation_steps
    return sequences * spec.parallelism.processes * spec.data.sequence_length
