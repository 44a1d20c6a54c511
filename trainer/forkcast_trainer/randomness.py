"""The random generators that training draws from, as values: of one rank, and of several in one
process.

A rollout is one process that takes the micro-batches of all ranks of its run. So that it drops the
activations that they would drop, it keeps a generator for each of them and turns to the one whose
micro-batch comes next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Shapes of the states of torch's generators: the CPU's Mersenne twister, CUDA's Philox.
TORCH_SHAPE, CUDA_SHAPE = (5056,), (16,)


@dataclass(frozen=True)
class Randomness:
    """The random generators of one rank. cuda: None on a CPU."""

    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    cuda: Tensor | None


def seed_all(seed: int) -> None:
    """Seed every generator of this process that training or a library may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries draw from the global generator


def taken(device: torch.device) -> Randomness:
    """This process's generators as they stand."""
    version, words, gauss_next = random.getstate()
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return Randomness(
        python=[version, list(words), gauss_next],
        numpy=[kind, np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)],
        torch=torch.get_rng_state().clone(),
        cuda=torch.cuda.get_rng_state(device).clone() if device.type == "cuda" else None,
    )


def put(device: torch.device, one: Randomness) -> None:
    """Become what `taken` gave. A CUDA generator that it lacks stays as it is."""
    version, words, gauss_next = one.python
    random.setstate((version, tuple(words), gauss_next))
    kind, keys, place, has_gauss, gauss = one.numpy
    words32 = np.array(keys, dtype=np.uint32)
    np.random.set_state((kind, words32, place, has_gauss, gauss))  # noqa: NPY002
    _put_torch(device, one)


def checked(one: Randomness) -> Randomness:
    """The same, if `put` takes it; tried on generators of its own.

    Raises TypeError, ValueError, RuntimeError or IndexError otherwise.
    """
    version, words, gauss_next = one.python
    random.Random().setstate((version, tuple(words), gauss_next))
    kind, keys, place, has_gauss, gauss = one.numpy
    np.random.RandomState().set_state(
        (kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss)
    )
    torch.Generator().set_state(one.torch)
    if one.cuda is not None and (tuple(one.cuda.shape), one.cuda.dtype) != (
        CUDA_SHAPE,
        torch.uint8,
    ):
        raise ValueError("rng.cuda: not a state of a CUDA generator")
    return one


def _put_torch(device: torch.device, one: Randomness) -> None:
    torch.set_rng_state(one.torch)
    if one.cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(one.cuda, device)


def seeded(seed: int, device: torch.device) -> Randomness:
    """The generators of a rank that begins with this seed; this process's own stay as they are."""
    before = taken(device)
    try:
        seed_all(seed)
        return taken(device)
    finally:
        put(device, before)


class Shards:
    """The generators of the ranks that this process computes for: its own, or all of its run.

    Between steps the process's own generators are those of its first rank; the others are kept
    here. Only torch's are switched: the model draws from no other.
    """

    def __init__(self, device: torch.device, others: Sequence[Randomness] = ()) -> None:
        """others: of ranks 1, 2, ... where this process computes for them, too."""
        self._device = device
        self._ranks = [taken(device), *others]
        self._at = 0

    @property
    def others(self) -> tuple[Randomness, ...]:
        """The generators of ranks 1, 2, ... as they stand between steps."""
        return tuple(self._ranks[1:])

    def turn_to(self, shard: int) -> None:
        """Let the model draw from the generators of this shard, 0 for the process's own."""
        if shard == self._at:
            return
        cuda = self._device.type == "cuda"
        self._ranks[self._at] = replace(
            self._ranks[self._at],
            torch=torch.get_rng_state().clone(),
            cuda=torch.cuda.get_rng_state(self._device).clone() if cuda else None,
        )
        _put_torch(self._device, self._ranks[shard])
        self._at = shard
