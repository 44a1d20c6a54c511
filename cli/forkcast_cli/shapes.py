"""The sizes of a model without building it: parameters and bytes from the shapes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from forkcast_wire.manifest import Data, Dtype, StressorType, TrainingRunSpec

#: layers, heads, width of the trainer's model shelf (GPT-2 paper, table 2); a test compares them.
SHAPES = {
    "gpt2-tiny": (4, 4, 128),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
}
_BYTES_VOCABULARY = 257
_HUB_VOCABULARIES = dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), 50257)
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


def plan_model(spec: TrainingRunSpec) -> ModelPlan | None:
    """The sizes; None where the architecture or the vocabulary cannot be known from here."""
    size = spec.model.size
    shape = SHAPES.get(spec.model.architecture)
    vocabulary = vocabulary_size(spec.data)
    if spec.model.init == "Pretrained" or shape is None or vocabulary is None:
        return None
    layers, heads = size.layers or shape[0], size.heads or shape[1]
    width = size.width or shape[2]
    long = any(one.type is StressorType.LONG_SEQUENCE for one in spec.stressors)
    positions = spec.data.sequence_length * (4 if long else 1)
    block = 12 * width * width + 13 * width
    parameters = vocabulary * width + positions * width + layers * block + 2 * width
    state = 3 * _FP32 * parameters
    return ModelPlan(
        layers=layers,
        width=width,
        heads=heads,
        positions=positions,
        vocabulary=vocabulary,
        parameters=parameters,
        state_bytes=state,
        memory_bytes=state + _FP32 * parameters + _activations(spec, layers, width, vocabulary),
    )


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
    """Ids of the manifest's tokenizer, where they can be told without loading it."""
    if data.tokenizer == "bytes":
        return _BYTES_VOCABULARY
    file = Path(data.tokenizer) / "tokenizer.json"
    if file.is_file():
        document = json.loads(file.read_text(encoding="utf-8"))
        ids = set(document.get("model", {}).get("vocab", {}).values())
        ids |= {one["id"] for one in document.get("added_tokens", [])}
        return max(ids) + 1 if ids else None
    return _HUB_VOCABULARIES.get(data.tokenizer)


def tokens_per_step(spec: TrainingRunSpec) -> int:
    """Tokens that one optimizer step sees, all processes."""
    training = spec.training
    sequences = training.micro_batch_size * training.gradient_accumulation_steps
    return sequences * spec.parallelism.processes * spec.data.sequence_length
