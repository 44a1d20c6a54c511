"""AdamW: decoupled weight decay (arXiv 1711.05101), as torch has it; fused on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forkcast_trainer.optimizers.base import Kind, Layout, Parameter, groups
from forkcast_wire.manifest import Optimizer


class AdamW(Kind):
    """Both moments in float32: 8 bytes a weight."""

    matrix_bits = 64
    other_bits = 64

    def build(
        self, parameters: Sequence[Parameter], settings: Optimizer, device: torch.device
    ) -> torch.optim.Optimizer:
        """Torch's."""
        fused = device.type == "cuda"
        layout = Layout("exp_avg", "exp_avg_sq", "step", counts_on_device=fused)
        return torch.optim.AdamW(
            groups(parameters, layout),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=0.0,
            fused=fused,
        )
