"""What a step looked like beyond its loss and norm: sampled around the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from forkcast.parameter_groups import group_of
from forkcast_trainer.internals import Internals
from forkcast_wire.manifest import Statistics


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was sampled of a step; units and ranges: ``StepStats``. None, empty: not sampled at it."""

    update_ratio: float | None = None
    rms_max: float | None = None
    update_cosine: float | None = None
    group_grad_norms: Mapping[str, float] = field(default_factory=dict)
    internals: Internals | None = None


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is read of a step before the optimizer changes weights and moments: 0-d tensors on the
    device, and a copy of the weights. Tensors are None if a first step has nothing to compare with.
    """

    group_grad_norms: Mapping[str, Tensor]
    rms_max: Tensor | None
    update_cosine: Tensor | None
    weights: list[Tensor]


class Observer:
    """Reads a model in training, and changes nothing. statistics: how often; may be replaced."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: Statistics,
        *,
        epsilon: float,
        autocast: Callable[[], AbstractContextManager[object]],
        look: Callable[[Tensor], Internals | None],
    ) -> None:
        """epsilon: the optimizer's, below which RMS_t takes no second moment's root. autocast: the
        forward pass's precision. look: inside the model, at a sequence of ids.
        """
        self.statistics = statistics
        self._optimizer, self._autocast, self._look = optimizer, autocast, look
        self._floor = epsilon**2
        named = dict(module.named_parameters())
        self._parameters = list(named.values())
        self._groups = [group_of(name) for name in named]
        self._update: list[Tensor] | None = None  # the last sampled change of the weights

    def forget(self) -> None:
        """After a restore the last update is not the state's: the cosine starts anew."""
        self._update = None

    @torch.no_grad()
    def before(self, step: int) -> Before | None:
        """Between clipping and update; None if the step is not sampled."""
        if step % self.statistics.update_every_steps:
            return None
        present = [p.grad for p in self._parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(present)).float()
        return Before(
            group_grad_norms=self._group_norms(norms),
            rms_max=self._rms_max(),
            update_cosine=self._cosine(norms),
            weights=[p.detach().clone() for p in self._parameters],
        )

    @torch.no_grad()
    def after(self, step: int, before: Before | None, sequence: Tensor) -> Measured:
        """After the update. before: None if there was none, or it is not sampled. sequence: [T] ids
        of the step's first window. All numbers but the internals come in one transfer.
        """
        inside = self.inside(step, sequence)
        if before is None:
            return Measured(internals=inside)
        seen = (self._ratio(before.weights), before.rms_max, before.update_cosine)
        scalars = [*before.group_grad_norms.values(), *(one for one in seen if one is not None)]
        numbers = iter(torch.stack([one.float().reshape(()) for one in scalars]).tolist())
        norms = {group: next(numbers) for group in before.group_grad_norms}
        ratio, rms_max, cosine = (None if one is None else next(numbers) for one in seen)
        return Measured(
            update_ratio=ratio,
            rms_max=rms_max,
            update_cosine=cosine,
            group_grad_norms=norms,
            internals=inside,
        )

    def inside(self, step: int, sequence: Tensor) -> Internals | None:
        """Attention and activations; None if the step is not sampled, or the model has no taps."""
        if step % self.statistics.internals_every_steps:
            return None
        with self._autocast():
            return self._look(sequence)

    def _group_norms(self, norms: Tensor) -> dict[str, Tensor]:
        """norms: [gradients], of the parameters that have one."""
        squares: dict[str, list[Tensor]] = {}
        pairs = zip(self._groups, self._parameters, strict=True)
        groups = [group for group, parameter in pairs if parameter.grad is not None]
        for group, norm in zip(groups, norms, strict=True):
            squares.setdefault(group, []).append(norm**2)
        return {group: torch.stack(each).sum().sqrt() for group, each in squares.items()}

    def _rms_max(self) -> Tensor | None:
        """Largest sqrt(mean(g^2 / max(v, eps^2))) over the tensors (arXiv 2304.13013, section 3),
        as the norm of g / sqrt(max(v, eps^2)) over the root of the tensor's size.
        """
        state = self._optimizer.state
        present = [p for p in self._parameters if p.grad is not None and "exp_avg_sq" in state[p]]
        if not present:
            return None
        scaled = torch._foreach_clamp_min([state[p]["exp_avg_sq"] for p in present], self._floor)
        torch._foreach_sqrt_(scaled)
        ratios = torch._foreach_div([p.grad for p in present if p.grad is not None], scaled)
        sizes = [p.numel() ** 0.5 for p in present]
        return torch.stack(torch._foreach_div(torch._foreach_norm(ratios), sizes)).max()

    def _cosine(self, norms: Tensor) -> Tensor | None:
        """Of the gradient and the last sampled update. norms: those of the gradients."""
        if self._update is None:
            return None
        pairs = [
            (parameter.grad.flatten(), update.flatten())
            for parameter, update in zip(self._parameters, self._update, strict=True)
            if parameter.grad is not None
        ]
        size: Tensor = torch.stack(torch._foreach_norm(self._update)).norm() * norms.norm()
        dots = torch.stack([torch.dot(gradient, update) for gradient, update in pairs])
        return dots.sum() / (size + 1e-30)

    def _ratio(self, weights: list[Tensor]) -> Tensor:
        """Size of the update over that of the weights before it, which become the last update."""
        size: Tensor = torch.stack(torch._foreach_norm(weights)).norm()
        torch._foreach_sub_(weights, list[Tensor](self._parameters))
        torch._foreach_neg_(weights)
        self._update = weights
        moved: Tensor = torch.stack(torch._foreach_norm(weights)).norm()
        return moved / (size + 1e-30)
