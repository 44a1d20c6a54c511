"""What a step looked like beyond its loss and norm, as values on the device: nothing here waits for one,
nothing is copied, and the model is not changed.

Norms by group come from what clipping measures anyway. RMS_t, the update and its cosine come from Adam's
moments, in slices; attention and activations from one more forward pass over one sequence. These are
sampled together, every so many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from forkcast.parameter_groups import GROUPS, group_of
from forkcast_trainer import internals
from forkcast_trainer.internals import Internals
from forkcast_trainer.measure import moments
from forkcast_trainer.measure.late import Value
from forkcast_wire.manifest import Statistics

Values: TypeAlias = dict[str, Value]
_NORM: Final = "norm:"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was sampled of a step; units and ranges: ``StepStats``. None, empty: not sampled at it."""

    update_ratio: float | None = None
    rms_max: float | None = None
    update_cosine: float | None = None
    group_grad_norms: Mapping[str, float] = field(default_factory=dict)
    internals: Internals | None = None


class Observer:
    """Reads a model in training. statistics: how often; may be replaced."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: Statistics,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        look: Callable[[Tensor], Mapping[str, Tensor]],
    ) -> None:
        """autocast: the forward pass's precision. look: inside the model, at a sequence of ids."""
        self.statistics = statistics
        self._optimizer, self._autocast, self._look = optimizer, autocast, look
        named = dict(module.named_parameters())
        self._parameters = list(named.values())
        self._groups = [group_of(name) for name in named]
        self._present = [name for name in GROUPS if name in self._groups]
        self._shares: dict[tuple[bool, ...], Tensor] = {}

    # ------------------------------------------------------------------------------- on the device

    @torch.no_grad()
    def before(self, step: int, each: Tensor) -> Values:
        """Between clipping and update. each: [n] norms of the gradients that exist, as clipped."""
        norms = (self._share(each) * each.square()).sum(1).sqrt()
        values: Values = {
            f"{_NORM}{name}": norm for name, norm in zip(self._present, norms.unbind(), strict=True)
        }
        if self._samples_update(step):
            rms, cosine = moments.rms_max(self._optimizer), moments.cosine(self._optimizer)
            values |= {} if rms is None else {"rms_max": rms}
            values |= {} if cosine is None else {"update_cosine": cosine}
        return values

    @torch.no_grad()
    def after(self, step: int, sequence: Tensor) -> Values:
        """After the update. sequence: [T] ids of the step's first window."""
        values: Values = {}
        if self._samples_update(step):
            ratio = moments.update_ratio(self._optimizer, moments.begun(self._optimizer))
            values |= {} if ratio is None else {"update_ratio": ratio}
        if step % self.statistics.internals_every_steps == 0:
            with self._autocast():
                values |= self._look(sequence)
        return values

    def _samples_update(self, step: int) -> bool:
        return step % self.statistics.update_every_steps == 0 and moments.is_adam(self._optimizer)

    def _share(self, each: Tensor) -> Tensor:
        """[groups, n]: 1 where a gradient belongs to the group."""
        exist = tuple(p.grad is not None for p in self._parameters)
        if exist not in self._shares:
            groups = [
                group for group, is_there in zip(self._groups, exist, strict=True) if is_there
            ]
            rows = [[float(group == name) for group in groups] for name in self._present]
            self._shares = {exist: torch.tensor(rows).to(each.device, non_blocking=True)}
        return self._shares[exist]

    # --------------------------------------------------------------------------------- on the host

    @staticmethod
    def read(numbers: Mapping[str, float], *, skipped: bool) -> Measured:
        """What `before` and `after` gave, once it has come. skipped: no update was made."""
        update = {} if skipped else numbers
        norms = {
            name.removeprefix(_NORM): value
            for name, value in numbers.items()
            if name.startswith(_NORM) and not skipped
        }
        return Measured(
            update_ratio=update.get("update_ratio"),
            rms_max=update.get("rms_max"),
            update_cosine=update.get("update_cosine"),
            group_grad_norms=norms,
            internals=internals.read(numbers),
        )
