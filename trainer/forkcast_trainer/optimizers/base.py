"""What an optimizer is to the rest of the trainer: how it is built, and what it keeps of a parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from forkcast_trainer.table import Role
from forkcast_wire.manifest import Optimizer

#: The key of a parameter group under which its `Layout` stands, and that of whether decay pulls on it.
LAYOUT: Final = "layout"
DECAYS: Final = "decays"


@dataclass(frozen=True, slots=True)
class Parameter:
    """decays: whether weight decay pulls on it. matrix: whether it is a matrix inside a block: of two
    dimensions, and neither an embedding nor a head.
    """

    name: str
    tensor: Tensor
    decays: bool
    matrix: bool


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one parameter, float32, of its shape; a copy if they are kept in another form. first: the
    decaying mean of the gradients. second: of their squares; None if there is none. count: 0-d, the steps
    since the start or the last reset; None if it is not counted.
    """

    first: Tensor
    second: Tensor | None
    count: Tensor | None


class Slot(NamedTuple):
    """One tensor that is kept of a parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Layout:
    """What is kept of a parameter, by the names in the optimizer's state: the slots of the two moments and
    of the step counter. None: not kept. counts_on_device: whether the counter stands beside the weights.
    """

    first: str
    second: str | None = None
    count: str | None = None
    counts_on_device: bool = False

    def slots(self, parameter: Tensor) -> Mapping[str, Slot]:
        """Everything that is saved of it: all of it, or nothing before the first step."""
        whole, counter = Slot(tuple(parameter.shape), torch.float32), Slot((), torch.float32)
        moments = {name: whole for name in (self.first, self.second) if name is not None}
        return moments | ({self.count: counter} if self.count is not None else {})

    def saved(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What to save of a parameter's state, by the names of `slots`; not copied."""
        names = (self.first, self.second, self.count)
        return {name: state[name] for name in names if name is not None and name in state}

    def restored(self, parameter: Tensor, saved: Mapping[str, Tensor]) -> dict[str, Any]:
        """The state of which `saved` was taken, a copy on the parameter's device."""
        return {
            slot: value.clone().to("cpu" if self._is_on_host(slot) else parameter.device)
            for slot, value in saved.items()
        }

    def _is_on_host(self, slot: str) -> bool:
        return slot == self.count and not self.counts_on_device

    def roles(self) -> Mapping[str, Role]:
        """Which slots a checkpoint may save in 8 bits: a pair of moments in float32. Without a second
        moment nothing says what an error of the first does to an update.
        """
        if self.second is None:
            return {}
        return {self.first: Role.FIRST_MOMENT, self.second: Role.SECOND_MOMENT}

    def moments(self, state: Mapping[str, Any]) -> Moments | None:
        """None before the first step."""
        if self.first not in state:
            return None
        second = None if self.second is None else state[self.second]
        return Moments(state[self.first], second, None if self.count is None else state[self.count])

    def reset(self, state: MutableMapping[str, Any]) -> None:
        """Zero the moments and the counter, in place."""
        for kept in self.saved(state).values():
            kept.zero_()


class Kind(ABC):
    """One optimizer. Stateless."""

    #: Bits that it keeps of a weight beside the weight: of a matrix inside a block, and of any other.
    matrix_bits: ClassVar[int]
    other_bits: ClassVar[int]
    #: Whether it keeps a second moment of every weight.
    second_moment: ClassVar[bool] = True
    #: Whether spec.optimizer.momentum is its to read.
    takes_momentum: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, parameters: Sequence[Parameter], settings: Optimizer, device: torch.device
    ) -> torch.optim.Optimizer:
        """The optimizer of a model on that device. Its groups are made by `groups`, so that each has a
        layout. Raises TrainerError if it cannot be built here.
        """


def groups(parameters: Iterable[Parameter], layout: Layout) -> list[dict[str, Any]]:
    """Parameter groups for torch: those that decay, then the others; none that is empty beside another."""
    both: dict[bool, list[Tensor]] = {True: [], False: []}
    for one in parameters:
        both[one.decays].append(one.tensor)
    made = [{"params": tensors, DECAYS: decays, LAYOUT: layout} for decays, tensors in both.items()]
    return [group for group in made if group["params"]] or made[:1]
