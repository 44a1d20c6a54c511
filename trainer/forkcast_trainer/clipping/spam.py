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

from forkcast_trainer import optimizers
from forkcast_trainer.clipping.base import (
    MAX_NORM,
    ClipContext,
    ClippingPolicy,
    ClipResult,
    Parameter,
    gradients,
    norms_of,
    scale_to,
)


def rewarm_scale(steps_since: int, steps: int) -> float:
    """Cosine from .01 to 1 over ``steps`` after a reset (algorithm 1 of the paper)."""
    if steps_since >= steps:
        return 1.0
    return 1.0 - 0.99 * 0.5 * (1.0 + math.cos(math.pi * (steps_since + 1) / steps))


class Spam(ClippingPolicy):
    """theta: a coordinate is spiked where g^2 > theta v. resetEverySteps (0 = never),
    rewarmSteps. graceSteps: no spike test until the optimizer has counted so many steps since its
    start or last reset, whatever reset it; maxNorm on top.
    """

    needs_second_moment = True
    takes = {
        "theta": Parameter(5000.0, above=0.0),
        "resetEverySteps": Parameter(500.0, least=0.0, whole=True),
        "rewarmSteps": Parameter(150.0, least=1.0, whole=True),
        "graceSteps": Parameter(20.0, least=0.0, whole=True),
        "maxNorm": MAX_NORM,
    }

    def __init__(self, params: Mapping[str, float]) -> None:
        super().__init__(params)
        self._since_reset = 0
        self._rewarming = False

    def clip_by(
        self, parameters: Sequence[Tensor], each: Tensor, norm: Tensor, context: ClipContext
    ) -> ClipResult:
        """Cut spiked coordinates to sign(g) sqrt(theta v), then the constant clip. A step that is
        refused counts as a step, for only the device knows of it yet.
        """
        del each
        if self._resets_now():
            optimizers.reset(context.optimizer)
            self._since_reset, self._rewarming = 0, True
        present = [one for one in parameters if one.grad is not None]
        moments = optimizers.moments(context.optimizer, present)
        for gradient, kept in zip(gradients(present), moments, strict=True):
            if kept is not None and kept.second is not None and kept.count is not None:
                self._cut_spikes(gradient, kept.second, kept.count)
        self._since_reset += 1
        cut = norms_of(parameters)
        after = scale_to(parameters, cut, cut.norm(), self.params["maxNorm"])
        return ClipResult(norm, after.clipped_norm, after.each, ~norm.isfinite())

    def _cut_spikes(self, gradient: Tensor, moment: Tensor, counted: Tensor) -> None:
        """In place, and without reading from the device. A coordinate that never had a gradient
        (moment 0: an unseen token's row) has nothing to be compared with, and is left alone.
        """
        limit = (moment * self.params["theta"]).sqrt_()
        spiked = (gradient.abs() > limit) & (moment > 0) & (counted >= self.params["graceSteps"])
        gradient.copy_(torch.where(spiked, torch.sign(gradient) * limit, gradient))

    def _resets_now(self) -> bool:
        every = int(self.params["resetEverySteps"])
        return bool(every) and self._since_reset >= every

    def rate_scale(self, step: int) -> float:
        """The re-warm-up after the last reset. The rate is asked for before the gradient is
        clipped, so a reset that is due counts already: Adam's first step after one is the full
        rate in every coordinate.
        """
        del step
        if self._resets_now():
            return rewarm_scale(0, int(self.params["rewarmSteps"]))
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
