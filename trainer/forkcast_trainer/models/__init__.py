"""Models by name. To add one: a file here, and its names in MODELS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import nn

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import gpt2
from forkcast_wire.manifest import Model

ModelBuilder: TypeAlias = Callable[[Model, int, int, int], nn.Module]
MODELS: Mapping[str, ModelBuilder] = dict.fromkeys(gpt2.SHAPES, gpt2.build)


def build(model: Model, vocabulary_size: int, positions: int, seed: int) -> nn.Module:
    """The manifest's model: (vocabulary, positions, seed) -> module. Raises TrainerError."""
    if model.architecture not in MODELS:
        raise TrainerError(
            "spec.model.architecture",
            f"unknown: {model.architecture}",
            f"one of {', '.join(MODELS)}",
        )
    return MODELS[model.architecture](model, vocabulary_size, positions, seed)
