"""Values that are computed on a device and read on the host later, so that no step waits for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

Value: TypeAlias = Tensor | float
T = TypeVar("T")
#: Where a device has no events: so many steps later its queue has passed the values.
_LAG_STEPS = 2
#: Values of a step; of one with more layers the buffer is made for it alone.
_PLACES = 128


@dataclass
class _Pack:
    """Values on their way to the host. copied: None where the device has no events."""

    names: list[str]
    values: Tensor
    copied: torch.cuda.Event | None


@dataclass
class _Waiting(Generic[T]):
    what: T
    known: dict[str, float]
    unsent: dict[str, Tensor] = field(default_factory=dict)
    packs: list[_Pack] = field(default_factory=list)


class LateReader(Generic[T]):
    """Takes the values of a step, gives them back with it in the order of steps, once they are there.

    On a CUDA device they are packed by one kernel and copied into pinned memory beside the training's
    own work; what has been copied is read without waiting. On the CPU they are read at once.

    The packing has a moment of its own, `send`: at the end of a step the device often has nothing to do
    but to wait for the host, and each launch there is time lost; in the next backward pass it has not.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting[T]] = deque()
        #: Pinned memory and events that have been read, to be used again: to make them is slow.
        self._free: list[tuple[Tensor, torch.cuda.Event]] = []

    def put(self, what: T, values: Mapping[str, Value]) -> None:
        """Take a step's values: 0-d tensors on any devices that nobody changes in place, or numbers."""
        self.send()
        self._waiting.append(_Waiting(what, {}))
        self.add(values)

    def add(self, values: Mapping[str, Value]) -> None:
        """Take more values of the step that was put last; of none if it has been taken."""
        if not self._waiting:
            return
        newest = self._waiting[-1]
        for name, value in values.items():
            if not isinstance(value, Tensor):
                newest.known[name] = float(value)
            elif value.device.type == "cpu":
                newest.known[name] = float(value.detach())
            else:
                newest.unsent[name] = value

    def send(self) -> None:
        """Set what has been put on its way to the host."""
        if self._waiting and (unsent := self._waiting[-1].unsent):
            self._waiting[-1].unsent = {}
            pack = self._sent(list(unsent), [_bare(one) for one in unsent.values()])
            self._waiting[-1].packs.append(pack)

    def _sent(self, names: list[str], tensors: list[Tensor]) -> _Pack:
        device = tensors[0].device
        if any(one.device != device for one in tensors):
            tensors = [one.to(device, non_blocking=True) for one in tensors]
        packed = torch.stack(tensors)
        if device.type != "cuda":
            return _Pack(names, packed, None)
        fits = len(names) <= _PLACES
        host, copied = (
            self._free.pop() if fits and self._free else _pinned(max(len(names), _PLACES))
        )
        host[: len(names)].copy_(packed, non_blocking=True)
        copied.record(torch.cuda.current_stream(device))
        return _Pack(names, host, copied)

    def newest(self) -> T | None:
        """What was put last, if it has not been taken."""
        return self._waiting[-1].what if self._waiting else None

    def take(self, *, everything: bool = False) -> list[tuple[T, dict[str, float]]]:
        """The steps whose values are there, oldest first. everything: wait for the rest too."""
        if everything:
            self.send()
        found = []
        while self._waiting:
            oldest = self._waiting[0]
            if not everything and not self._is_there(oldest):
                break
            self._waiting.popleft()
            for pack in oldest.packs:
                oldest.known |= self._read(pack)
            found.append((oldest.what, oldest.known))
        return found

    def _read(self, pack: _Pack) -> dict[str, float]:
        if pack.copied is not None:
            pack.copied.synchronize()
            if len(pack.values) == _PLACES:
                self._free.append((pack.values, pack.copied))
        read = pack.values[: len(pack.names)].tolist()
        return dict(zip(pack.names, read, strict=True))

    def _is_there(self, one: _Waiting[T]) -> bool:
        if one.unsent:
            return False
        for pack in one.packs:
            if pack.copied is not None:
                if not pack.copied.query():
                    return False
            elif len(self._waiting) <= _LAG_STEPS:
                return False
        return True


def kept(value: Value) -> Value:
    """A value that may be changed in place, as of now."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _bare(value: Tensor) -> Tensor:
    """0-d, float32, without a graph; most are already."""
    if value.dtype is torch.float32 and not value.dim() and not value.requires_grad:
        return value
    return value.detach().reshape(()).float()


def _pinned(places: int) -> tuple[Tensor, torch.cuda.Event]:
    return torch.empty(places, pin_memory=True), torch.cuda.Event()
