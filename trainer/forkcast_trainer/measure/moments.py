"""What Adam's moments say about a step: RMS_t before it, the size of the update after it.

Nothing is copied: the update is computed again from the moments, in slices of bounded size, for a copy
of the weights might not fit beside the user's model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from forkcast_trainer.measure.late import Value, kept
from forkcast_trainer.measure.norms import norms

#: Elements of one slice: 16 MiB of float32 for each of its temporaries, which stay in a GPU's cache.
_SLICE = 4 << 20
#: By group of the optimizer: the rate that a step uses, and the parameters that it changes.
Begun: TypeAlias = list[tuple[Value, list[Tensor]]]


def slices(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of at most so many elements, but at least one."""
    group: list[Tensor] = []
    size = 0
    for one in tensors:
        if group and size + one.numel() > _SLICE:
            yield group
            group, size = [], 0
        group.append(one)
        size += one.numel()
    if group:
        yield group


def is_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the update can be computed from the state: torch's own Adam and AdamW."""
    return isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))


@torch.no_grad()
def rms_max(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Largest sqrt(mean(g^2 / max(v, eps^2))) over the tensors, v before the step (arXiv 2304.13013,
    section 3). None where the optimizer keeps no second moment of each weight yet.
    """
    ratios = []
    for group in optimizer.param_groups:
        floor = float(group.get("eps", 1e-8)) ** 2
        for part in slices(_with_moments(optimizer, with_gradients(group))):
            scaled = torch._foreach_clamp_min(
                [optimizer.state[p]["exp_avg_sq"] for p in part], floor
            )
            torch._foreach_sqrt_(scaled)
            divided = torch._foreach_div([p.grad for p in part if p.grad is not None], scaled)
            sizes = [max(p.numel(), 1) ** 0.5 for p in part]
            ratios += list(torch._foreach_div(list(norms(divided).unbind()), sizes))
    if not ratios:
        return None
    first = ratios[0].device
    return torch.stack([one.to(first, non_blocking=True) for one in ratios]).max()


def begun(optimizer: torch.optim.Optimizer) -> Begun:
    """Of the step that begins now. A rate that is a tensor is copied: a schedule changes it in place."""
    return [(kept(group["lr"]), with_gradients(group)) for group in optimizer.param_groups]


def with_gradients(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that a step changes."""
    return [p for p in group["params"] if p.grad is not None]


def _with_moments(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> list[Tensor]:
    """Those that have a second moment of the same shape, as Adam keeps it."""
    found = []
    for p in parameters:
        moment = optimizer.state[p].get("exp_avg_sq") if p in optimizer.state else None
        if isinstance(moment, Tensor) and moment.shape == p.shape:
            found.append(p)
    return found


@torch.no_grad()
def update_ratio(optimizer: torch.optim.Optimizer, begun: Begun) -> Tensor | None:
    """L2 norm of the update that Adam or AdamW made last over that of the weights, which are those
    after it. None if it made none.
    """
    updates: list[Tensor] = []
    weights: list[Tensor] = []
    for group, (rate, parameters) in zip(optimizer.param_groups, begun, strict=True):
        for part in slices(_with_moments(optimizer, parameters)):
            sizes = norms(_adam(optimizer, group, part)) * rate
            updates.append(sizes.norm())
            weights.append(norms(part).norm())
    if not updates:
        return None
    first = updates[0].device
    moved = torch.stack([one.to(first, non_blocking=True) for one in updates]).norm()
    size = torch.stack([one.to(first, non_blocking=True) for one in weights]).norm()
    ratio: Tensor = moved / (size + 1e-30)
    return ratio


@torch.no_grad()
def cosine(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Cosine of the gradients and the direction of the update that Adam or AdamW made last, [-1, 1]; to be
    asked before the next. None if it made none.
    """
    dots: list[Tensor] = []
    sizes: list[Tensor] = []
    gradients: list[Tensor] = []
    for group in optimizer.param_groups:
        for part in slices(_with_moments(optimizer, with_gradients(group))):
            grads = [p.grad for p in part if p.grad is not None]
            direction = _adam(optimizer, group, part)
            sizes.append(norms(direction).norm())
            gradients.append(norms(grads).norm())
            dots += [
                torch.dot(one.flatten(), grad.flatten())
                for one, grad in zip(direction, grads, strict=True)
            ]
    if not dots:
        return None
    size = torch.stack(sizes).norm() * torch.stack(gradients).norm()
    along: Tensor = torch.stack(dots).sum() / (size + 1e-30)
    return along.neg()


def _adam(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], part: Sequence[Tensor]
) -> list[Tensor]:
    """The direction of the last step: bias-corrected moments and decoupled decay (arXiv 1711.05101)."""
    states = [optimizer.state[p] for p in part]
    first, second = group["betas"]
    taken = states[0]["step"]
    if isinstance(taken, Tensor) and taken.device.type != "cpu":
        taken = taken.clamp(min=1)  # the optimizer is fused or capturable: it is not read
    else:
        taken = max(float(taken), 1.0)  # 0 after a reset, with moments of zero
    variance = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    root = torch._foreach_sqrt([state[variance] for state in states])
    torch._foreach_mul_(root, (1 - second**taken) ** -0.5)
    torch._foreach_add_(root, group["eps"])
    direction = list(torch._foreach_div([state["exp_avg"] for state in states], root))
    torch._foreach_mul_(direction, 1 / (1 - first**taken))
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    if decoupled and group["weight_decay"]:
        torch._foreach_add_(direction, list(part), alpha=group["weight_decay"])
    return direction
