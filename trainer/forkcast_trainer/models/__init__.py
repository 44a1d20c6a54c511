"""Model families. To add one: a file here, and a line in FAMILIES."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models.family import Family, Shape
from forkcast_trainer.models.gpt2 import GPT2
from forkcast_trainer.models.hf import HuggingFace
from forkcast_trainer.models.parts import Head, Special, Taps
from forkcast_trainer.models.t5 import T5
from forkcast_trainer.stressors.long_sequence import LONGER
from forkcast_wire.manifest import Model, StressorType, TrainingRunSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FAMILIES",
    "Family",
    "Head",
    "Shape",
    "Special",
    "Taps",
    "build",
    "families",
    "family_for",
    "family_of",
    "positions_of",
]

FAMILIES: Mapping[str, type[Family]] = {
    "gpt2": GPT2,
    "t5": T5,
    "hf": HuggingFace,
}


@cache
def families() -> tuple[Family, ...]:
    """All of the shelf."""
    return tuple(kind() for kind in FAMILIES.values())


def family_of(architecture: str) -> Family:
    """Whose models have this name. Raises TrainerError."""
    for family in families():
        if family.takes(architecture):
            return family
    raise TrainerError(
        "spec.model.architecture",
        f"unknown: {architecture}",
        f"one of {', '.join(name for family in families() for name in family.names)}",
    )


def family_for(model: Model) -> Family:
    """Whose model the manifest asks for. Raises TrainerError if it has not what is asked for."""
    family = family_of(model.architecture)
    if model.qk_norm and (not family.norms_queries or model.init == "Pretrained"):
        rule = (
            "pretrained weights have none" if family.norms_queries else "of the gpt2 family alone"
        )
        raise TrainerError("spec.model.qkNorm", rule, "set false")
    return family


def positions_of(spec: TrainingRunSpec) -> int:
    """The longest sequence that a run shows its model, tokens."""
    long = any(one.type is StressorType.LONG_SEQUENCE for one in spec.stressors)
    return spec.data.sequence_length * (LONGER if long else 1)


def build(
    model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
) -> nn.Module:
    """The manifest's model, see `Family.build`. Raises TrainerError."""
    return family_for(model).build(model, vocabulary, positions, seed, end=end)
