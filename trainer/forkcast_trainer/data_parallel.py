"""A learner in training on one process, or on several that share each step's micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from forkcast_trainer.learner import Learner
from forkcast_trainer.objectives import Loss
from forkcast_wire import beats


class DataParallel:
    """``spread(batch)`` is the learner's loss. Of several processes all make one, at the same time."""

    def __init__(self, learner: Learner, world: int) -> None:
        self._learner = learner
        self._spread: DistributedDataParallel | None = None
        if world > 1:
            with beats.during(beats.Phase.MEET):
                self._spread = DistributedDataParallel(
                    learner,
                    gradient_as_bucket_view=True,
                    find_unused_parameters=learner.family.skips_parameters,
                )

    def __call__(self, batch: Tensor) -> Loss:
        """Of this process's [count, length + 1] ids."""
        found: Loss = (self._learner if self._spread is None else self._spread)(batch)
        return found

    @contextmanager
    def micro_batch(self, *, averages: bool) -> Iterator[None]:
        """Around a forward and a backward pass. averages: what the step has gathered becomes the mean
        over the processes, in buckets while the backward pass goes on; else nobody is met.
        """
        if self._spread is None:
            yield
        elif averages:
            with beats.during(beats.Phase.MEET):
                yield
        else:
            with self._spread.no_sync():
                yield
