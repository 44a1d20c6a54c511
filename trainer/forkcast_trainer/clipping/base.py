"""What a clipping policy is: it changes gradients in place, and remembers across restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipContext:
    """What a policy may look at beside the gradients.

    step: optimizer step. optimizer: for policies that need its moments. micro_gradients: per
    micro-batch, one tensor a parameter, where the policy asked for them.
    """

    step: int
    optimizer: torch.optim.Optimizer
    micro_gradients: Sequence[Sequence[Tensor]] = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter of a policy: its default and its range, [least, below) or (above, below)."""

    default: float
    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        inside = self.above < value < self.below and value >= self.least
        return inside and (not self.whole or value == int(value))

    def __str__(self) -> str:
        limits = (
            f"> {self.above:g}" if self.above > -math.inf else "",
            f">= {self.least:g}" if self.least > -math.inf else "",
            f"< {self.below:g}" if self.below < math.inf else "",
        )
        kind = "a whole number" if self.whole else "a number"
        return " ".join([kind, " and ".join(limit for limit in limits if limit)])


#: The constant clip that the adaptive policies keep on top.
MAX_NORM = Parameter(1.0, above=0.0)


@dataclass(frozen=True)
class ClipResult:
    """Global L2 norms in float32, before and after, 0-d. each: [n], after, of the gradients that exist.
    skip: 0-d bool, to refuse the update. All are on the gradients' device, and nobody has waited for it.
    """

    norm: Tensor
    clipped_norm: Tensor
    each: Tensor
    skip: Tensor


class ClippingPolicy:
    """Base: no clipping. Every policy refuses a non-finite gradient and learns nothing from it."""

    #: How many micro-batches, over all processes, a step must have.
    least_micro_batches = 1
    #: Whether `ClipContext.micro_gradients` must be filled.
    needs_micro_gradients = False
    #: Whether the optimizer must keep a second moment of every weight.
    needs_second_moment = False
    #: What a manifest may set.
    takes: Mapping[str, Parameter] = {}

    def __init__(self, params: Mapping[str, float]) -> None:
        """Raises ValueError for a parameter that is unknown or outside its range."""
        unknown = sorted(set(params) - set(self.takes))
        if unknown:
            known = ", ".join(self.takes) or "none"
            raise ValueError(
                f"spec.optimizer.clipping.params: unknown {', '.join(unknown)}; it takes {known}"
            )
        for name, value in params.items():
            if value not in self.takes[name]:
                raise ValueError(
                    f"spec.optimizer.clipping.params.{name}: {value:g} is out of range; "
                    f"give {self.takes[name]}"
                )
        self.params = {name: one.default for name, one in self.takes.items()} | dict(params)

    def check(self, micro_batches: int) -> None:
        """Raises ValueError if a step of so many micro-batches is too small for the policy."""

    def clip(self, parameters: Sequence[Tensor], context: ClipContext) -> ClipResult:
        """Clip ``.grad`` of the parameters in place; what a refused gradient becomes is not defined."""
        each = norms_of(parameters)
        return self.clip_by(parameters, each, each.norm(), context)

    def clip_by(
        self,
        parameters: Sequence[Tensor],  # noqa: ARG002
        each: Tensor,
        norm: Tensor,
        context: ClipContext,  # noqa: ARG002
    ) -> ClipResult:
        """The policy itself. each: [n] norms of the gradients. norm: of all. Whether it is finite is known
        on the device alone: a policy that learns from it does so through `torch.where`.
        """
        return ClipResult(norm, norm, each, ~norm.isfinite())

    def rate_scale(self, step: int) -> float:  # noqa: ARG002
        """A factor on the learning rate that the policy asks for at this step."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` was taken from."""


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that exist."""
    return [p.grad for p in parameters if p.grad is not None]


def norms_of(parameters: Sequence[Tensor]) -> Tensor:
    """[n] L2 norms of the gradients that exist, float32."""
    return torch.stack(list(torch._foreach_norm(gradients(parameters), 2, dtype=torch.float32)))


def scale_to(
    parameters: Sequence[Tensor], each: Tensor, norm: Tensor, limit: Tensor | float
) -> ClipResult:
    """Scale all gradients so that their norm is at most ``limit``. each: their norms. norm: of all."""
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients(parameters), factor)
    return ClipResult(norm, norm * factor, each * factor, ~norm.isfinite())
