"""What an objective gives: from a batch of the text, what the model reads and what it should say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """inputs: keyword arguments of the model. targets: [count, length] ids, IGNORED for none."""

    inputs: dict[str, Tensor]
    targets: Tensor


class Objective(ABC):
    """Pure: of the batch alone, so that resumes and rollouts see the same examples."""

    @abstractmethod
    def example(self, batch: Tensor) -> Example:
        """batch: [count, length + 1] ids."""

    @abstractmethod
    def look(self, sequence: Tensor) -> dict[str, Tensor]:
        """The model's inputs to look inside it at one sequence of ids, [length]."""
