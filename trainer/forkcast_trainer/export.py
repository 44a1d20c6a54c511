"""A saved state's weights for other tools: a Hugging Face folder, a safetensors file, a torch file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forkcast_trainer import models
from forkcast_trainer.data.tokenizer import BYTES
from forkcast_trainer.errors import DataError
from forkcast_trainer.table import CheckpointError
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import TrainingRunSpec


def hugging_face(spec: TrainingRunSpec, weights: Mapping[str, Tensor], place: Path) -> None:
    """A folder for `from_pretrained`: config.json, model.safetensors, and the tokenizer's files unless the
    run's tokens are bytes. Raises CheckpointError if the weights are of another model, DataError if the
    tokenizer cannot be opened.
    """
    tokenizer = None
    if spec.data.tokenizer != BYTES:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(spec.data.tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(
                "spec.data.tokenizer",
                first_line(error),
                "put the tokenizer back, or export as safetensors",
            ) from error
    end = getattr(tokenizer, "eos_token_id", None)
    model: Any = _model(spec, weights, end)
    if spec.model.qk_norm or not hasattr(model, "save_pretrained"):
        what = "a model with qkNorm" if spec.model.qk_norm else spec.model.architecture
        raise CheckpointError(f"{what} has no layout of Hugging Face's; export as safetensors")
    model.save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)


def _model(spec: TrainingRunSpec, weights: Mapping[str, Tensor], end: int | None) -> nn.Module:
    try:
        family = models.family_for(spec.model)
        sizes = family.sizes({name: tuple(one.shape) for name, one in weights.items()})
        model = family.build(spec.model, *sizes, seed=0, end=end)
        missing, unknown = model.load_state_dict(dict(weights), strict=False)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the state is of another model: {error}") from error
    if lacking := [name for name in missing if name in dict(model.named_parameters())] + unknown:
        raise CheckpointError(f"the state is of another model: {lacking[0]}")
    return model


def safetensors(_spec: TrainingRunSpec, weights: Mapping[str, Tensor], place: Path) -> None:
    """One file with the weights by the model's own names; tied weights once."""
    from safetensors.torch import save_file

    save_file(dict(weights), place, {"format": "pt"})


def torch_file(_spec: TrainingRunSpec, weights: Mapping[str, Tensor], place: Path) -> None:
    """A state dict for `torch.load(..., weights_only=True)` and `load_state_dict`."""
    torch.save(dict(weights), place)


#: By the name that the command line takes.
FORMATS: Mapping[str, Callable[[TrainingRunSpec, Mapping[str, Tensor], Path], None]] = {
    "hugging-face": hugging_face,
    "safetensors": safetensors,
    "torch": torch_file,
}
