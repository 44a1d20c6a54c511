"""SPAM (arXiv 2501.06842): clip spiked coordinates, reset the moments now and then, warm up again.

Differences from the reference code: a reset also resets the step counters, so that Adam's bias
correction is right afterwards, and the re-warm-up is 150 steps whatever the run's own warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forkcast_trainer.clipping.base import (
    ClipContext,
    ClippingPolicy,
    ClipResult,
    global_norm,
    scale_to,
)


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Zero both Adam moments and their step counters."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            if name in state:
                state[name].zero_()


def rewarm_scale(steps_since: int, steps: int) -> float:
    """Cosine from .01 to 1 over ``steps`` after a reset (algorithm 1 of the paper)."""
    if steps_since >= steps:
        return 1.0
    return 1.0 - 0.99 * 0.5 * (1.0 + math.cos(math.pi * (steps_since + 1) / steps))


class Spam(ClippingPolicy):
    """theta: a coordinate is spiked where g^2 > theta v. resetEverySteps (0 = never),
    rewarmSteps, graceSteps: no spike test that soon after a start or a reset; maxNorm on top.
    """

    defaults = {
        "theta": 5000.0,
        "resetEverySteps": 500.0,
        "rewarmSteps": 150.0,
        "graceSteps": 20.0,
        "maxNorm": 1.0,
    }

    def __init__(self, params: Mapping[str, float]) -> None:
        super().__init__(params)
        self._since_reset = 0
        self._rewarming = False

    def clip_finite(
        self, parameters: Sequence[Tensor], norm: Tensor, context: ClipContext
    ) -> ClipResult:
        """Cut spiked coordinates to sign(g) sqrt(theta v), then the constant clip."""
        every = int(self.params["resetEverySteps"])
        if every and self._since_reset >= every:
            reset_moments(context.optimizer)
            self._since_reset, self._rewarming = 0, True
        if self._since_reset >= self.params["graceSteps"]:
            for parameter in parameters:
                moment = context.optimizer.state.get(parameter, {}).get("exp_avg_sq")
                if moment is not None and parameter.grad is not None:
                    limit = (moment * self.params["theta"]).sqrt_()
                    spiked = (parameter.grad.abs() > limit) & (moment > 0)
                    cut = torch.sign(parameter.grad) * limit
                    parameter.grad.copy_(torch.where(spiked, cut, parameter.grad))
        self._since_reset += 1
        after = scale_to(parameters, global_norm(parameters), self.params["maxNorm"])
        return ClipResult(norm, after.clipped_norm)

    def rate_scale(self, step: int) -> float:
        """The re-warm-up after the last reset."""
        del step
        if not self._rewarming:
            return 1.0
        return rewarm_scale(self._since_reset, int(self.params["rewarmSteps"]))

    def state_dict(self) -> dict[str, Any]:
        """Steps since the last reset, and whether there was one."""
        return {"since_reset": self._since_reset, "rewarming": self._rewarming}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._since_reset = int(state["since_reset"])
        self._rewarming = bool(state["rewarming"])
