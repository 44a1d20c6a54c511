"""A model and what it learns to do: what is differentiated, compiled and spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from forkcast_trainer.data.tokenizer import BYTES, open_tokenizer
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.models import Family, Taps, family_for, family_of, positions_of
from forkcast_trainer.objectives import OBJECTIVES, Loss, Objective, head_loss, logits_loss
from forkcast_trainer.stressors.base import DataStressor
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import TrainingRunSpec

_log = structlog.get_logger()


class Learner(nn.Module):
    """``learner(batch)`` is the loss of a [count, length + 1] batch of ids."""

    def __init__(
        self,
        module: nn.Module,
        family: Family,
        objective: Objective,
        *,
        z_loss: float,
        compiled: bool,
    ) -> None:
        """compiled: by torch.compile, in training; the head by itself, for it runs in chunks."""
        super().__init__()
        self.module, self.family, self.objective = module, family, objective
        #: What a state says of how it is trained, where that is not the plain way.
        self.facts: dict[str, bool | float] = {}
        self.taps: Taps | None = family.taps(module)
        self._z_loss, self._compiled = z_loss, compiled
        self._whole = family.head(module) is None
        one: Callable[[Mapping[str, Tensor]], Tensor] = self._logits if self._whole else self.hidden
        self._eager = one
        self._fast = torch.compile(one, dynamic=False) if compiled else one
        self._proven = not compiled

    def forward(self, batch: Tensor, *, eager: bool = False) -> Loss:
        """eager: not compiled, for passes in another mode than training's."""
        example = self.objective.example(batch)
        output = (self._eager if eager else self._trained)(example.inputs)
        if self._whole:
            return logits_loss(output, example.targets, z_loss=self._z_loss)
        head = self.family.head(self.module)
        if head is None:
            raise RuntimeError("the head is gone")
        fused = self._compiled and not eager
        return head_loss(output, head, example.targets, z_loss=self._z_loss, fused=fused)

    def _trained(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The first time it may turn out that nothing can be compiled here: then it is not."""
        if self._proven:
            return self._fast(inputs)
        self._proven = True
        try:
            return self._fast(inputs)
        except TorchDynamoException as error:
            _log.warning(
                "train.not_compiled",
                why=first_line(getattr(error, "inner_exception", error)),
                remedy="install a C compiler, or set spec.model.compile: false",
            )
            self._fast, self._compiled = self._eager, False
            return self._eager(inputs)

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[count, length, width]: what the head multiplies."""
        return self.family.hidden(self.module, inputs)

    def untap(self, why: str) -> None:
        """Give up the statistics from inside, and say so: once, for nothing is tried again."""
        self.taps = None
        _log.warning(
            "train.fewer_statistics",
            model=type(self.module).__name__,
            why=why,
            without="attention entropy, attention logits, activations",
        )

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.module(**inputs).logits
        return logits


def stages(spec: TrainingRunSpec) -> list[DataStressor]:
    """What the objective wants done to batches that are read for training."""
    objective = OBJECTIVES[family_of(spec.model.architecture).objective]
    return [make_one() for make_one in objective.stages]


def make(spec: TrainingRunSpec, vocabulary: int, *, compiled: bool = False) -> Learner:
    """The manifest's model, on the CPU, in training mode. vocabulary: ids of the text. compiled: by
    torch.compile where it can be.

    Raises TrainerError.
    """
    family, uri = family_for(spec.model), spec.data.tokenizer
    tokenizer = open_tokenizer(uri) if family.reads_sentinels and uri != BYTES else None
    end = vocabulary - 1 if tokenizer is None else tokenizer.end_of_text
    module: Any = family.build(
        spec.model, vocabulary, positions_of(spec), spec.training.seed, end=end
    )
    if spec.model.gradient_checkpointing:
        try:
            module.gradient_checkpointing_enable()
        except (AttributeError, ValueError):
            raise TrainerError(
                "spec.model.gradientCheckpointing",
                f"{type(module).__name__} cannot recompute its activations",
                "set false",
            ) from None
    module.train()
    special = family.special(module, vocabulary, end, tokenizer.sentinels if tokenizer else ())
    objective = OBJECTIVES[family.objective](special)
    learner = Learner(module, family, objective, z_loss=spec.training.z_loss, compiled=compiled)
    if spec.model.qk_norm:
        learner.facts["qkNorm"] = True
    if spec.training.z_loss:
        learner.facts["zLoss"] = spec.training.z_loss
    if learner.taps is None:
        learner.untap("its blocks are not recognised")
    return learner
