"""A model and what it learns to do: what is differentiated, compiled and spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import Family, Taps, family_of, positions_of
from forkcast_trainer.objectives import OBJECTIVES, Loss, head_loss, logits_loss
from forkcast_wire.manifest import TrainingRunSpec

_log = structlog.get_logger()


class Learner(nn.Module):
    """``learner(batch)`` is the loss of a [count, length + 1] batch of ids."""

    def __init__(self, module: nn.Module, family: Family, *, z_loss: float, compiled: bool) -> None:
        """compiled: by torch.compile, in training. The head is not: it runs in chunks."""
        super().__init__()
        self.module, self.family = module, family
        self.objective = OBJECTIVES[family.objective]()
        self.taps: Taps | None = family.taps(module)
        self._z_loss, self._compiled = z_loss, compiled
        self._whole = family.head(module) is None
        one: Callable[[Mapping[str, Tensor]], Tensor] = self._logits if self._whole else self.hidden
        self._eager = one
        self._fast: Callable[[Mapping[str, Tensor]], Tensor] = (
            torch.compile(one) if compiled else one
        )

    def forward(self, batch: Tensor, *, eager: bool = False) -> Loss:
        """eager: not compiled, for passes in another mode than training's."""
        example = self.objective.example(batch)
        output = (self._eager if eager else self._fast)(example.inputs)
        if self._whole:
            return logits_loss(output, example.targets, z_loss=self._z_loss)
        head = self.family.head(self.module)
        if head is None:
            raise RuntimeError("the head is gone")
        fused = self._compiled and not eager
        return head_loss(output, head, example.targets, z_loss=self._z_loss, fused=fused)

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[count, length, width]: what the head multiplies."""
        return self.family.hidden(self.module, inputs)

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.module(**inputs).logits
        return logits


def make(spec: TrainingRunSpec, vocabulary: int) -> Learner:
    """The manifest's model, on the CPU, in training mode. vocabulary: ids of the tokenizer.

    Raises TrainerError.
    """
    family = family_of(spec.model.architecture)
    module: Any = family.build(spec.model, vocabulary, positions_of(spec), spec.training.seed)
    if spec.model.gradient_checkpointing:
        try:
            module.gradient_checkpointing_enable()
        except ValueError as error:
            raise TrainerError(
                "spec.model.gradientCheckpointing", str(error), "set false"
            ) from error
    module.train()
    learner = Learner(module, family, z_loss=spec.training.z_loss, compiled=spec.model.compile)
    if learner.taps is None:
        _log.warning(
            "train.fewer_statistics",
            model=spec.model.architecture,
            without="attention entropy, attention logits, activations",
        )
    return learner
