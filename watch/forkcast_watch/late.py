"""Values that are computed on a device and read on the host later, so that no step waits for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

Value: TypeAlias = Tensor | float
T = TypeVar("T")
#: Where a device has no events: so many steps later its queue has passed the values.
_LAG_STEPS = 2


@dataclass
class _Waiting(Generic[T]):
    what: T
    known: dict[str, float]
    names: list[str]
    values: Tensor | None
    copied: torch.cuda.Event | None


class LateReader(Generic[T]):
    """Takes the values of a step, gives them back with it in the order of steps, once they are there.

    On a CUDA device they are packed by one kernel and copied into pinned memory beside the training's
    own work; what has been copied is read without waiting. On the CPU they are read at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting[T]] = deque()

    def put(self, what: T, values: Mapping[str, Value]) -> None:
        """Take a step's values: 0-d tensors on any devices, or numbers."""
        known: dict[str, float] = {}
        names: list[str] = []
        tensors: list[Tensor] = []
        for name, value in values.items():
            if not isinstance(value, Tensor):
                known[name] = float(value)
            elif value.device.type == "cpu":
                known[name] = float(value.detach())
            else:
                names.append(name)
                tensors.append(value.detach().reshape(()).float())
        packed, copied = None, None
        if tensors:
            first = tensors[0].device
            on_one = [one.to(first, non_blocking=True) for one in tensors]
            packed = torch.stack(on_one)
            if first.type == "cuda":
                host = torch.empty(len(names), dtype=packed.dtype, pin_memory=True)
                packed = host.copy_(packed, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(torch.cuda.current_stream(first))
        self._waiting.append(_Waiting(what, known, names, packed, copied))

    def newest(self) -> T | None:
        """What was put last, if it has not been taken."""
        return self._waiting[-1].what if self._waiting else None

    def take(self, *, everything: bool = False) -> list[tuple[T, dict[str, float]]]:
        """The steps whose values are there, oldest first. everything: wait for the rest too."""
        found = []
        while self._waiting:
            oldest = self._waiting[0]
            if not everything and not self._is_there(oldest):
                break
            if everything and oldest.copied is not None:
                oldest.copied.synchronize()
            self._waiting.popleft()
            read = [] if oldest.values is None else oldest.values.tolist()
            found.append((oldest.what, oldest.known | dict(zip(oldest.names, read, strict=True))))
        return found

    def _is_there(self, one: _Waiting[T]) -> bool:
        if one.values is None:
            return True
        if one.copied is not None:
            return bool(one.copied.query())
        return len(self._waiting) > _LAG_STEPS
