"""A toy optimizer: a step of the momentum's sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forkcast_trainer.optimizers.base import Kind, Layout, Parameter, groups
from forkcast_wire.manifest import Optimizer


class _Signs(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is None:
                    continue
                kept = self.state[one].setdefault("momentum", torch.zeros_like(one))
                kept.lerp_(one.grad, 0.1)
                one.mul_(1 - group["lr"] * group["weight_decay"])
                one.add_(kept.sign(), alpha=-group["lr"])


class Signs(Kind):
    """Momentum in float32."""

    matrix_bits = 32
    other_bits = 32
    second_moment = False

    def build(
        self, parameters: Sequence[Parameter], settings: Optimizer, device: torch.device
    ) -> torch.optim.Optimizer:
        """One optimizer for all."""
        del device
        return _Signs(groups(parameters, Layout("momentum")), {"lr": settings.learning_rate})
