"""The next token."""

from __future__ import annotations

from torch import Tensor

from forkcast_trainer.objectives.base import Example, Objective


class Causal(Objective):
    """Every id is predicted from those before it."""

    def example(self, batch: Tensor) -> Example:
        """See `Objective`."""
        return Example({"input_ids": batch[:, :-1]}, batch[:, 1:])

    def look(self, sequence: Tensor) -> dict[str, Tensor]:
        """The sequence itself."""
        return {"input_ids": sequence[None]}
