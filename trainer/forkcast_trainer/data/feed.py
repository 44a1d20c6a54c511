"""The micro-batches of a step, each read while the one before it is computed.

What comes next is a guess from the sampler's state as it stands: a saved state is of what was consumed,
and a state that is restored, reordered or skipped in between makes the guess a wrong one, which is thrown
away. So what a step sees never depends on how far ahead was read.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from forkcast_trainer.data.batches import Batches
from forkcast_trainer.data.mixture import Mixture, MixtureState
from forkcast_trainer.data.sampler import Sampler, SamplerState

_State: TypeAlias = SamplerState | MixtureState


@dataclass(frozen=True)
class _Place:
    """Before a micro-batch of this process: its step, its number in the step, and the sampler's state."""

    step: int
    number: int
    state: _State


@dataclass(frozen=True)
class _Ready:
    """A micro-batch that was read, and the sampler's state behind it."""

    place: _Place
    sampler: Sampler | Mixture
    ids: Tensor


class Feed:
    """Reads for one process. Safe in the children of a fork: each has a thread of its own."""

    def __init__(
        self, batches: Batches, micro_batch: int, own: Sequence[bool], *, pin: bool
    ) -> None:
        """own: of each micro-batch of a step, whether this process computes it; the windows of the others
        are drawn, not read. pin: into page-locked memory, from which a GPU fetches them by itself.
        """
        if not any(own):
            raise ValueError("feed: a step without a micro-batch")
        self._batches, self._count, self._own, self._pin = batches, micro_batch, tuple(own), pin
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: Future[_Ready] | None = None
        self._pid = 0

    def step(self, step: int, sampler: Sampler | Mixture) -> Iterator[tuple[int, Tensor]]:
        """(number, [windows, length + 1] int64 ids) of each micro-batch that this process computes, in order.
        The sampler moves on with each; behind the last it stands where the step ends.
        """
        number = 0
        while number < len(self._own):
            if not self._own[number]:
                self._batches.draw(step, sampler, self._count)
                number += 1
                continue
            ready = self._taken(_Place(step, number, sampler.state), sampler)
            _move(sampler, ready.sampler)
            number += 1
            following = copy.copy(ready.sampler)
            self._ahead = self._thread().submit(self._next, step, number, following)
            yield number - 1, ready.ids

    def _taken(self, place: _Place, sampler: Sampler | Mixture) -> _Ready:
        """What was read ahead, if it is what is wanted."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._pid == os.getpid():
            with suppress(Exception):  # reading again tells the same of what is wanted
                ready = ahead.result()
                if ready.place == place:
                    return ready
        return self._read(place, copy.copy(sampler))

    def _next(self, step: int, number: int, sampler: Sampler | Mixture) -> _Ready:
        """The first micro-batch of this process from there on."""
        while True:
            if number == len(self._own):
                step, number = step + 1, 0
            if self._own[number]:
                return self._read(_Place(step, number, sampler.state), sampler)
            self._batches.draw(step, sampler, self._count)
            number += 1

    def _read(self, place: _Place, sampler: Sampler | Mixture) -> _Ready:
        drawn = self._batches.draw(place.step, sampler, self._count)
        ids = torch.from_numpy(self._batches.read(place.step, drawn))
        return _Ready(place, sampler, ids.pin_memory() if self._pin else ids)

    def _thread(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(1, "feed"), os.getpid()
        return self._pool


def _move(sampler: Sampler | Mixture, to: Sampler | Mixture) -> None:
    if (isinstance(sampler, Sampler) and isinstance(to, Sampler)) or (
        isinstance(sampler, Mixture) and isinstance(to, Mixture)
    ):
        sampler.state = to.state
