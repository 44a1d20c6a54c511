"""Which directives wait for a run's trainer. In memory only: the operator posts them again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.fields import MOST_EPOCHS

_MOST = 64
_MOST_TEXT = 256
#: As long as a manifest's budget may be.
_MOST_HOLD_SECONDS = 604_800.0
#: What is delivered in a mode; what is not named is delivered in none.
_BY_MODE = {
    "Observe": {"checkpoint_now"},
    "DryRun": {"checkpoint_now", "hold", "resume"},
    "Enforce": {"checkpoint_now", "hold", "resume", "collapse"},
}


def deliverable(directive: pb.Directive, mode: str) -> bool:
    """Whether a run's mode lets it reach the trainer; the last guard, not the first."""
    return directive.WhichOneof("what") in _BY_MODE[mode]


def check(directive: pb.Directive) -> None:
    """Raises ValueError, naming the field that is wrong."""
    if not directive.id:
        raise ValueError("id: a directive needs one")
    what, texts = directive.WhichOneof("what"), [("id", directive.id)]
    if what in ("hold", "resume", "collapse"):
        texts.append((f"{what}.branch", getattr(directive, what).branch))
    texts.append(("collapse.decision_digest", directive.collapse.decision_digest))
    for name, text in texts:
        if len(text) > _MOST_TEXT:
            raise ValueError(f"{name}: at most {_MOST_TEXT} characters")
    seconds = directive.hold.deadline_seconds
    if what == "hold" and not (math.isfinite(seconds) and 0 <= seconds <= _MOST_HOLD_SECONDS):
        raise ValueError(f"hold.deadline_seconds: 0 to {_MOST_HOLD_SECONDS:.0f}")
    if what == "collapse" and not 1 <= directive.collapse.epoch <= MOST_EPOCHS:
        raise ValueError(f"collapse.epoch: 1 to {MOST_EPOCHS}")


class Waiting:
    """The directives of one run. A hold ends by itself: what is told later is what is left of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: dict[str, tuple[pb.Directive, float]] = {}

    def leave(self, directive: pb.Directive) -> bool:
        """Add one, and drop what it ends; False if too many wait."""
        for over in ("resume", "collapse"):  # both end the hold of their branch
            if directive.HasField(over):
                self._all.pop(f"hold/{getattr(directive, over).branch}", None)
        self.pending()
        if directive.id not in self._all and len(self._all) >= _MOST:
            return False
        ends = math.inf
        if directive.HasField("hold"):
            ends = self._clock() + directive.hold.deadline_seconds
        self._all[directive.id] = directive, ends
        return True

    def overtaken(self, epoch: int) -> None:
        """Drop the collapses into epochs that the trainer has reached."""
        for key, (directive, _) in list(self._all.items()):
            if directive.HasField("collapse") and directive.collapse.epoch <= epoch:
                del self._all[key]

    def pending(self) -> list[pb.Directive]:
        """All that still hold good, in the order of their arrival."""
        now = self._clock()
        self._all = {key: (one, ends) for key, (one, ends) in self._all.items() if now < ends}
        return [_left(one, ends - now) for one, ends in self._all.values()]


def _left(directive: pb.Directive, seconds: float) -> pb.Directive:
    if not directive.HasField("hold"):
        return directive
    left = pb.Directive()
    left.CopyFrom(directive)
    left.hold.deadline_seconds = seconds
    return left
