"""Which directives wait for a run's trainer. In memory only: the operator posts them again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from forkcast.directives import CheckpointNow, Collapse, Directive, Hold, Resume

_MOST: Final = 64
#: What is delivered in a mode; what is not named is delivered in none.
_BY_MODE: Final[Mapping[str, tuple[type, ...]]] = {
    "Observe": (CheckpointNow,),
    "DryRun": (CheckpointNow, Hold, Resume),
    "Enforce": (CheckpointNow, Hold, Resume, Collapse),
}


def deliverable(directive: Directive, mode: str) -> bool:
    """Whether a run's mode lets it reach the trainer; the last guard, not the first."""
    return isinstance(directive, _BY_MODE[mode])


class Waiting:
    """The directives of one run. A hold ends by itself: what is told later is what is left of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: dict[str, tuple[Directive, float]] = {}

    def leave(self, directive: Directive) -> bool:
        """Add one, and drop what it ends; False if too many wait."""
        if isinstance(directive, Resume | Collapse):  # both end the hold of their branch
            self._drop(lambda one: isinstance(one, Hold) and one.branch == directive.branch)
        self.pending()
        if directive.id not in self._all and len(self._all) >= _MOST:
            return False
        ends = math.inf
        if isinstance(directive, Hold):
            ends = self._clock() + directive.deadline_seconds
        self._all[directive.id] = directive, ends
        return True

    def overtaken(self, epoch: int) -> None:
        """Drop the collapses into epochs that the trainer has reached."""
        self._drop(lambda one: isinstance(one, Collapse) and one.epoch <= epoch)

    def pending(self) -> list[Directive]:
        """All that still hold good, in the order of their arrival."""
        now = self._clock()
        self._all = {key: (one, ends) for key, (one, ends) in self._all.items() if now < ends}
        return [
            replace(one, deadline_seconds=ends - now) if isinstance(one, Hold) else one
            for one, ends in self._all.values()
        ]

    def _drop(self, over: Callable[[Directive], bool]) -> None:
        self._all = {key: held for key, held in self._all.items() if not over(held[0])}
