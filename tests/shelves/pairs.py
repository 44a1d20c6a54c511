"""A toy model family: the next id from this one alone. No attention, and nothing of another library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forkcast_trainer.models.family import Family, Shape
from forkcast_trainer.models.parts import Head
from forkcast_wire.manifest import Model

if TYPE_CHECKING:
    from torch import Tensor, nn


class Pairs(Family):
    """An embedding, a matrix, a head."""

    @property
    def names(self) -> Sequence[str]:
        """One size."""
        return ("pairs",)

    def shape(self, model: Model, vocabulary: int | None, positions: int) -> Shape | None:
        """See `Family`."""
        width = model.size.width or 16
        return vocabulary and Shape(
            layers=1,
            heads=1,
            width=width,
            positions=positions,
            vocabulary=vocabulary,
            parameters=2 * vocabulary * width + width * width,
        )

    def build(
        self, model: Model, vocabulary: int, positions: int, seed: int, *, end: int | None = None
    ) -> nn.Module:
        """See `Family`."""
        import torch
        from torch import nn

        del positions, end
        width = model.size.width or 16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = {
                "embed": nn.Embedding(vocabulary, width),
                "mlp": nn.Linear(width, width, bias=False),
                "lm_head": nn.Linear(width, vocabulary, bias=False),
            }
            return nn.ModuleDict(parts)

    def hidden(self, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Family`."""
        read: Tensor = module["embed"](inputs["input_ids"])
        return read + module["mlp"](read).tanh()

    def head(self, module: Any) -> Head:
        """See `Family`."""
        return Head(module["lm_head"].weight)

    def taps(self, module: nn.Module) -> None:
        """Nothing to see."""

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """See `Family`."""
        return shapes["embed.weight"][0], 1
