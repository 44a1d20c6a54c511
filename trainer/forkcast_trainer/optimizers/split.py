"""One optimizer out of several, each for some of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Split(torch.optim.Optimizer):
    """Steps them all. Its groups and its state are theirs, not copies."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """What was loaded or replaced since is the parts' too."""
        begin = 0
        for part in self._parts:
            end = begin + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[begin:end], self.state
            begin = end

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Raises ValueError for a closure: which part would call it?"""
        if closure is not None:
            raise ValueError("a split optimizer takes no closure")
        self._share()
        for part in self._parts:
            part.step()
