"""The loss of all ranks, at rank 0, without a collective.

A collective of ours would have to be entered by every rank in the same order as the user's own: a loop
that watches on one rank only, or a rank that dies between two of them, would hang all others. So each
rank writes its losses into the process group's key-value store, from a thread beside the training and
over a connection of its own, and rank 0 collects what is there. A rank that writes nothing is missed for
a while, then the mean is of the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

from forkcast_watch.tolerance import Tolerance

_STORE_SECONDS = 5.0
PIECE = "the other ranks' losses"
_attached = count()


def place() -> tuple[int, int]:
    """(rank, ranks) of this process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def open_store() -> Any:
    """A connection of our own to the store of the default group. Raises RuntimeError."""
    default: Any = dist.distributed_c10d._get_default_store()
    store = default.clone()
    store.set_timeout(timedelta(seconds=_STORE_SECONDS))
    return store


@dataclass
class RankLosses:
    """Losses by step, from all ranks to rank 0. Used by one thread."""

    rank: int
    world: int
    store: Any
    tolerance: Tolerance
    _unsent: dict[int, float] = field(default_factory=dict)
    _sent: int = 0
    _read: dict[int, int] = field(default_factory=dict)
    _found: dict[int, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """All ranks attach in the same order, so they count the same."""
        self._prefix = f"forkcast/{next(_attached)}"
        self.flush: Callable[[], object] = self.tolerance.shield(PIECE, self._flush)
        self.collect: Callable[[], object] = self.tolerance.shield(PIECE, self._collect)

    def add(self, step: int, loss: float) -> None:
        """This rank's loss of a step."""
        if self.rank:
            self._unsent[step] = loss
        else:
            self._found.setdefault(step, {})[0] = loss

    def _flush(self) -> None:
        """Of another rank: send what has not been sent."""
        if self.rank and self._unsent:
            text = json.dumps(list(self._unsent.items()))
            self.store.set(f"{self._prefix}/{self.rank}/{self._sent}", text)
            self._sent += 1
            self._unsent.clear()

    def _collect(self) -> None:
        """Of rank 0: take what is there."""
        for rank in range(1, self.world):
            while self.store.check([key := f"{self._prefix}/{rank}/{self._read.get(rank, 0)}"]):
                for step, loss in json.loads(self.store.get(key)):
                    self._found.setdefault(step, {})[rank] = loss
                self.store.delete_key(key)
                self._read[rank] = self._read.get(rank, 0) + 1

    def missing(self, step: int) -> int:
        """How many ranks have not told their loss of a step."""
        if PIECE in self.tolerance.failed:
            return 0
        return self.world - len(self._found.get(step, {}))

    def mean(self, step: int) -> float:
        """Of the ranks that told it; forgets the step and those before it."""
        told = list(self._found.get(step, {}).values())
        for known in [one for one in self._found if one <= step]:
            del self._found[known]
        return sum(told) / len(told) if told else float("nan")
