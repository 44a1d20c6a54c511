"""ZClip (arXiv 2504.02507): clip where the gradient norm's z-score is extreme.

Differences from the reference code, each a fault of it: the statistics are part of the state, so a
rewind does not restart the warm-up; a non-finite norm skips the step and teaches nothing; warm-up
values are held to the constant clip before they enter the statistics; norms are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forkcast_trainer.clipping.base import (
    MAX_NORM,
    ClipContext,
    ClippingPolicy,
    ClipResult,
    Parameter,
    scale_to,
)


class ZClip(ClippingPolicy):
    """decay (alpha), zThreshold, warmupSteps (N) as in section 3 of the paper; maxNorm: the
    constant clip that stays on top.
    """

    # below two values there is no variance, and a variance of 0 would clip to nothing
    takes = {
        "decay": Parameter(0.97, least=0.0, below=1.0),
        "zThreshold": Parameter(2.5, above=0.0),
        "warmupSteps": Parameter(25.0, least=2.0, whole=True),
        "maxNorm": MAX_NORM,
    }

    def __init__(self, params: Mapping[str, float]) -> None:
        super().__init__(params)
        self._warmup = int(self.params["warmupSteps"])
        self._become([], 0.0, 0.0)

    def _become(self, buffer: list[float], mean: float, variance: float) -> None:
        # [warmup + 3], float64: the norms of the warm-up, how many they are, mean and variance
        filled = buffer + [0.0] * (self._warmup - len(buffer))
        self._memory = torch.tensor([*filled, len(buffer), mean, variance], dtype=torch.float64)

    def clip_by(
        self, parameters: Sequence[Tensor], each: Tensor, norm: Tensor, context: ClipContext
    ) -> ClipResult:
        """Above the threshold the norm is brought to mean + (zThreshold^2 / z) sd."""
        del context
        self._memory = self._memory.to(norm.device)
        observed, limit = norm.double(), self.params["maxNorm"]
        accepted = self._accepted(observed)
        warming = self._memory[-3] < self._warmup
        self._memory = torch.where(
            observed.isfinite(), self._after(observed, accepted, warming), self._memory
        )
        top = torch.where(warming, limit, accepted.clamp(max=limit)).float()
        return scale_to(parameters, each, norm, top)

    def _accepted(self, observed: Tensor) -> Tensor:
        """What is left of a norm after the warm-up."""
        mean, sd, bound = self._memory[-2], self._memory[-1].sqrt(), self.params["zThreshold"]
        z = (observed - mean) / (sd + 1e-6)
        return torch.where(z <= bound, observed, mean + bound * bound / z * sd)

    def _after(self, observed: Tensor, accepted: Tensor, warming: Tensor) -> Tensor:
        """The memory after a finite norm."""
        count, mean, variance = self._memory[-3:]
        places = torch.arange(self._warmup, device=observed.device)
        held = observed.clamp(max=self.params["maxNorm"])
        buffer = torch.where((places == count) & warming, held, self._memory[:-3])
        full = warming & (count + 1 == self._warmup)
        first = buffer.mean()
        decay = self.params["decay"]
        # Squared about the mean before this value: its expectation is 2 / (1 + decay) of the
        # variance, 1.5 % high. The reference squares about the updated mean, 4.5 % low.
        later = decay * mean + (1 - decay) * accepted
        spread = decay * variance + (1 - decay) * (accepted - mean).square()
        mean = torch.where(full, first, torch.where(warming, mean, later))
        about = (buffer - first).square().mean()
        variance = torch.where(full, about, torch.where(warming, variance, spread))
        return torch.cat([buffer, torch.stack([count + warming, mean, variance])])

    def state_dict(self) -> dict[str, Any]:
        """Warm-up buffer, mean and variance."""
        *buffer, count, mean, variance = self._memory.tolist()
        return {"buffer": buffer[: int(count)], "mean": mean, "variance": variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them. Raises ValueError for a longer warm-up than the policy's."""
        buffer = [float(x) for x in state["buffer"]]
        if len(buffer) > self._warmup:
            raise ValueError(f"clipping: {len(buffer)} norms of a warm-up of {self._warmup} steps")
        self._become(buffer, float(state["mean"]), float(state["variance"]))
