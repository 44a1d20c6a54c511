"""What an objective gives: from a batch of the text, what the model reads and what it should say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from forkcast_trainer.models import Special
from forkcast_trainer.stressors.base import DataStressor


@dataclass(frozen=True, slots=True)
class Example:
    """inputs: keyword arguments of the model. targets: [count, length] ids, IGNORED for none."""

    inputs: dict[str, Tensor]
    targets: Tensor


class Objective(ABC):
    """Pure: of the batch alone, so that resumes and rollouts see the same examples."""

    #: What the training batches go through before, with the step at hand.
    stages: ClassVar[Sequence[Callable[[], DataStressor]]] = ()

    def __init__(self, special: Special) -> None:
        self.special = special

    @abstractmethod
    def example(self, batch: Tensor) -> Example:
        """batch: [count, length + 1] ids."""

    @abstractmethod
    def look(self, sequence: Tensor) -> dict[str, Tensor]:
        """The model's inputs to look inside it at one sequence of ids, [length]."""
