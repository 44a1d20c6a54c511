"""The sizes of a model without building it: parameters and bytes from the shapes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast_trainer import logit_chunks, models
from forkcast_trainer.errors import TrainerError
from forkcast_wire.manifest import Data, Device, Dtype, TrainingRunSpec
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.shelves import SHELVES

_BYTES_VOCABULARY = 257
_END_OF_TEXT = "<|endoftext|>"
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """layers, width, positions: of the model. vocabulary: ids. parameters: tied embedding once.
    state_bytes: weights in fp32, and what the optimizer keeps of them. memory_bytes: an estimate of one training
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
    """The sizes; None if the architecture's or the vocabulary's are known only when they are loaded.
    Raises ManifestError if no trainer can build the model.
    """
    vocabulary, positions = vocabulary_size(spec.data), models.positions_of(spec)
    try:
        shape = models.family_for(spec.model).shape(spec.model, vocabulary, positions)
    except TrainerError as error:
        raise ManifestError(error.field, error.rule, error.remedy) from None
    if shape is None:
        return None
    state = _FP32 * shape.parameters + _optimizer_bytes(spec, shape)
    activations = _activations(spec, shape.layers, shape.width, shape.vocabulary)
    return ModelPlan(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        positions=shape.positions,
        vocabulary=shape.vocabulary,
        parameters=shape.parameters,
        state_bytes=state,
        memory_bytes=state + _FP32 * shape.parameters + activations,
    )


def _optimizer_bytes(spec: TrainingRunSpec, shape: models.Shape) -> int:
    """What the optimizer keeps, as the shelf says: less of a matrix than of another weight."""
    bits = SHELVES["optimizers"][spec.optimizer.name]
    others = shape.parameters - shape.matrices
    return (shape.matrices * bits["matrixBits"] + others * bits["otherBits"]) // 8


def _activations(spec: TrainingRunSpec, layers: int, width: int, vocabulary: int) -> int:
    """Bytes kept for the backward pass: about 16 tensors of [tokens, width] a block (Korthikanti et
    al. 2022 count 34 bytes a token and width in half precision, without the attention matrix, which
    sdpa does not keep); and of the head a chunk of logits in three copies, its matrix and its
    gradient.
    """
    tokens = spec.training.micro_batch_size * spec.data.sequence_length
    half = spec.model.dtype in (Dtype.BFLOAT16, Dtype.FLOAT16)
    kept = 1 if spec.model.gradient_checkpointing else 17
    device = "cpu" if spec.model.device is Device.CPU else "cuda"
    columns, rows = (
        logit_chunks.padded(vocabulary),
        logit_chunks.chunk_rows(tokens, vocabulary, device),
    )
    head = columns * (3 * rows + 2 * width)
    return tokens * kept * (2 if half else _FP32) * width * layers + _FP32 * head


def vocabulary_size(data: Data) -> int | None:
    """Ids of the manifest's tokenizer, where they can be told without loading it: one more than
    its highest, and one more still where it has no end-of-text of its own.
    """
    if data.vocabulary_size is not None:
        return data.vocabulary_size
    if data.tokenizer == "bytes":
        return _BYTES_VOCABULARY
    folder = Path(data.tokenizer)
    if not folder.is_dir():
        named = (family.vocabulary_of(data.tokenizer) for family in models.families())
        return next((ids for ids in named if ids is not None), None)
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
