"""Which directives wait for a run's trainer. In memory only: the operator posts them again."""

from __future__ import annotations

from forkcast_wire import forkcast_pb2 as pb

_MOST = 64
#: What is delivered in a mode; what is not named is delivered in none.
_BY_MODE = {
    "Observe": {"checkpoint_now"},
    "DryRun": {"checkpoint_now", "hold", "resume"},
    "Enforce": {"checkpoint_now", "hold", "resume", "collapse"},
}


def deliverable(directive: pb.Directive, mode: str) -> bool:
    """Whether a run's mode lets it reach the trainer; the last guard, not the first."""
    return directive.WhichOneof("what") in _BY_MODE[mode]


def leave(waiting: dict[str, pb.Directive], directive: pb.Directive) -> bool:
    """Add one, and drop what it ends; False where too many wait."""
    for over in ("resume", "collapse"):  # both end the hold of their branch
        if directive.HasField(over):
            waiting.pop(f"hold/{getattr(directive, over).branch}", None)
    if directive.id not in waiting and len(waiting) >= _MOST:
        return False
    waiting[directive.id] = directive
    return True


def overtaken(waiting: dict[str, pb.Directive], epoch: int) -> None:
    """Drop the collapses into epochs that the trainer has reached."""
    for key, directive in list(waiting.items()):
        if directive.HasField("collapse") and directive.collapse.epoch <= epoch:
            del waiting[key]
