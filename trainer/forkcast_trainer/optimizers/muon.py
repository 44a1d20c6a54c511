"""Muon (K. Jordan, 2024): the momentum of a matrix, orthogonalised by Newton-Schulz, as torch has it.

For matrices inside blocks; embeddings, heads and vectors are AdamW's, as its author says. The update is
scaled to AdamW's usual size, .2 sqrt(max(rows, columns)) (arXiv 2502.16982), so that one learning rate and
one weight decay, tuned for AdamW, serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from forkcast_trainer.optimizers.adamw import AdamW
from forkcast_trainer.optimizers.base import Kind, Layout, Parameter, groups
from forkcast_trainer.optimizers.split import Split
from forkcast_wire.manifest import Optimizer

#: Of torch and of the author.
_MOMENTUM: Final = 0.95


class Muon(Kind):
    """A matrix's momentum in float32: 4 bytes a weight; AdamW's 8 of all others."""

    matrix_bits = 32
    other_bits = 64
    second_moment = False
    takes_momentum = True

    def build(
        self, parameters: Sequence[Parameter], settings: Optimizer, device: torch.device
    ) -> torch.optim.Optimizer:
        """Torch's Muon beside torch's AdamW; AdamW alone for a model without such matrices."""
        matrices = [one for one in parameters if one.matrix]
        others = AdamW().build([one for one in parameters if not one.matrix], settings, device)
        if not matrices:
            return others
        muon = torch.optim.Muon(
            groups(matrices, Layout("momentum_buffer")),
            lr=settings.learning_rate,
            weight_decay=0.0,
            momentum=_MOMENTUM if settings.momentum is None else settings.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        return Split([muon, others])
