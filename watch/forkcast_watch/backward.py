"""The moment at which a backward pass has ended and every gradient of it is final.

It comes before clipping, whatever clips, and needs no line in the user's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class BackwardEnd:
    """Calls back at the end of each backward pass that reaches the parameters.

    One parameter's hook is enough: the one whose gradient comes last, which is outside every
    checkpointed block, so that a nested pass of a block is not taken for the whole. It is found in the
    first pass, and again when a step has come without it.
    """

    def __init__(self, parameters: Sequence[Tensor], call: Callable[[], object]) -> None:
        """call: must not raise; it runs with the gradients summed over the ranks."""
        self._parameters, self._call = parameters, call
        self._handles: dict[int, RemovableHandle] = {}
        self._queued = False
        self._last: int | None = None
        self._hook_all()

    def _hook_all(self) -> None:
        for place, parameter in enumerate(self._parameters):
            if place not in self._handles:
                hook = self._hook(place)
                self._handles[place] = parameter.register_post_accumulate_grad_hook(hook)

    def _hook(self, place: int) -> Callable[[Tensor], None]:
        def arrived(_: Tensor) -> None:
            self._last = place
            if not self._queued:
                self._queued = True
                _at_the_end(self._after_others)

        return arrived

    def _after_others(self) -> None:
        """DistributedDataParallel sums over the ranks in such a call of its own, which was queued after
        this one's; from here it is before.
        """
        _at_the_end(self._ended)

    def _ended(self) -> None:
        self._queued = False
        self._call()

    def settle(self) -> None:
        """A step has ended: keep the hook of the gradient that came last; without one, look for it."""
        last, self._last = self._last, None
        self._queued = False  # also where a backward pass was broken off
        if last is None:
            self._hook_all()
            return
        for place in [one for one in self._handles if one != last]:
            self._handles.pop(place).remove()

    def remove(self) -> None:
        """Leave no hook behind."""
        while self._handles:
            self._handles.popitem()[1].remove()


def _at_the_end(call: Callable[[], None]) -> None:
    """Queue a call for the end of the running pass, as FSDP does."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
