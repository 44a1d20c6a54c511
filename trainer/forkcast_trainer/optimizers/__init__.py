"""Optimizers by name. To add one: a file here, and a line in OPTIMIZERS.

Nothing else in the trainer knows them by name: what they keep of a parameter is read through `layouts`,
`moments` and `reset`, and their rate is set by `set_rates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from forkcast_trainer.models import Family
from forkcast_trainer.optimizers.adamw import AdamW
from forkcast_trainer.optimizers.adamw8bit import AdamW8bit
from forkcast_trainer.optimizers.base import DECAYS, LAYOUT, Kind, Layout, Moments, Parameter, Slot
from forkcast_trainer.optimizers.muon import Muon
from forkcast_wire.manifest import Optimizer

__all__ = [
    "OPTIMIZERS",
    "Layout",
    "Moments",
    "Slot",
    "described",
    "layouts",
    "make",
    "moments",
    "reset",
    "set_rates",
]

OPTIMIZERS: Final[Mapping[str, type[Kind]]] = {
    "AdamW": AdamW,
    "AdamW8bit": AdamW8bit,
    "Muon": Muon,
}
#: Of an optimizer that was built elsewhere: what torch's Adam and AdamW keep.
_TORCHS_ADAM: Final = Layout("exp_avg", "exp_avg_sq", "step")


def make(module: nn.Module, family: Family, settings: Optimizer) -> torch.optim.Optimizer:
    """The named optimizer of a module, on its device. Raises TrainerError if it cannot be built here."""
    parameters = described(module, family)
    return OPTIMIZERS[settings.name]().build(parameters, settings, parameters[0].tensor.device)


def described(module: nn.Module, family: Family) -> list[Parameter]:
    """The module's parameters, tied ones once."""
    tables = {
        id(one)
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for one in part.parameters()
    }
    return [
        Parameter(
            name,
            one,
            decays=family.decays(name, one),
            matrix=one.ndim == 2 and id(one) not in tables and family.part(name) != "embedding",
        )
        for name, one in module.named_parameters()
    ]


def layouts(optimizer: torch.optim.Optimizer) -> dict[Tensor, Layout]:
    """What the optimizer keeps of each of its parameters."""
    return {
        parameter: group.get(LAYOUT, _TORCHS_ADAM)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def moments(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]
) -> Iterator[Moments | None]:
    """Of each parameter, decoded when it is asked for; None before its first step."""
    layout = layouts(optimizer)
    return (layout[one].moments(optimizer.state.get(one, {})) for one in parameters)


def reset(optimizer: torch.optim.Optimizer) -> None:
    """Zero all moments and their step counters, as before the first step."""
    for parameter, layout in layouts(optimizer).items():
        if parameter in optimizer.state:
            layout.reset(optimizer.state[parameter])


def set_rates(optimizer: torch.optim.Optimizer, rate: float, decay: float) -> None:
    """The learning rate of the next step, and the weight decay of what decays."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = decay if group[DECAYS] else 0.0
