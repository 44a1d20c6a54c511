"""What a model family gives: the contract of this shelf.

A family is one file here and one line in `FAMILIES`. It is read by the trainer and by `forkcast plan`,
which starts without torch: what it says about sizes are plain values, and torch is imported where
a module is built or looked into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from forkcast.parameter_groups import group_of
from forkcast_trainer.models.parts import Head, Special, Taps
from forkcast_wire.manifest import Model

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's size. layers: blocks, of encoder and decoder together. positions: the longest
    sequence. vocabulary: ids. parameters: tied weights once. matrices: those of them in matrices inside
    blocks, of which some optimizers keep less; 0: not known.
    """

    layers: int
    heads: int
    width: int
    positions: int
    vocabulary: int
    parameters: int
    matrices: int = 0


class Family(ABC):
    """One kind of model. Stateless."""

    #: What its models learn to do: a name of the objectives' shelf.
    objective: ClassVar[str] = "Causal"
    #: Whether its models can norm queries and keys.
    norms_queries: ClassVar[bool] = False
    #: Whether its objective writes sentinels: then the tokenizer is asked for its own.
    reads_sentinels: ClassVar[bool] = False

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """What spec.model.architecture may say, for messages."""

    def takes(self, architecture: str) -> bool:
        """Whether an architecture of the manifest is of this family."""
        return architecture in self.names

    def vocabulary_of(self, name: str) -> int | None:
        """Ids of the tokenizer that its published models have under this hub name."""
        del name
        return None

    @abstractmethod
    def shape(self, model: Model, vocabulary: int | None, positions: int) -> Shape | None:
        """The size of what `build` makes; None if it is known only when it is loaded. vocabulary:
        the tokenizer's ids, None if not known.

        Raises TrainerError if nothing can be built.
        """

    @abstractmethod
    def build(
        self, model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
    ) -> nn.Module:
        """A module on the CPU, float32 (mixed precision is the forward pass's affair, the weights
        that learn are full) for at least so many ids and positions: random from ``seed`` without
        disturbing the caller's generators, or the manifest's pretrained weights. end: the id of the
        tokenizer's end of text; the last if absent.

        Raises TrainerError.
        """

    @abstractmethod
    def hidden(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """[count, length, width]: what the head multiplies. inputs: as the objective gives them."""

    @abstractmethod
    def head(self, module: nn.Module) -> Head | None:
        """The matrix from hidden to logits; None if the logits are more than their product, then
        `module(**inputs).logits` is asked.
        """

    @abstractmethod
    def taps(self, module: nn.Module) -> Taps | None:
        """What statistics from inside are read of; None if they cannot be."""

    def special(self, module: nn.Module, vocabulary: int, end: int, own: Sequence[int]) -> Special:
        """The ids that the objective writes. vocabulary, end: the tokenizer's ids and end of text.
        own: its sentinels. Raises TrainerError if the model has no ids for them.
        """
        del module, vocabulary
        return Special(end, end, tuple(own))

    def part(self, name: str) -> str:
        """Which of `forkcast.parameter_groups.GROUPS` a parameter belongs to."""
        return group_of(name)

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay pulls on a parameter: not on norms and biases."""
        del name
        return parameter.ndim >= 2

    @abstractmethod
    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(vocabulary, positions) of saved weights, by the shapes of the named parameters, so that
        `build` makes their module. Raises KeyError if they are of another family.
        """
