"""Clipping policies by name. To add one: a file here, and a line in CLIPPING."""

from __future__ import annotations

from collections.abc import Mapping

from forkcast_trainer.clipping.arc import Arc, require_micro_batches
from forkcast_trainer.clipping.base import ClipContext, ClippingPolicy, ClipResult
from forkcast_trainer.clipping.norm import Norm
from forkcast_trainer.clipping.spam import Spam
from forkcast_trainer.clipping.zclip import ZClip

__all__ = ["CLIPPING", "ClipContext", "ClipResult", "ClippingPolicy", "make"]

CLIPPING: Mapping[str, type[ClippingPolicy]] = {
    "None": ClippingPolicy,
    "Norm": Norm,
    "ZClip": ZClip,
    "ARC": Arc,
    "SPAM": Spam,
}


def make(name: str, params: Mapping[str, float], *, micro_batches: int) -> ClippingPolicy:
    """The named policy; ``micro_batches``: of one step, over all processes.

    Raises ValueError for an unknown name, an unknown parameter, or too few micro-batches.
    """
    if name not in CLIPPING:
        raise ValueError(f"clipping policy: unknown {name}; one of {', '.join(CLIPPING)}")
    if CLIPPING[name].needs_micro_gradients:
        require_micro_batches(micro_batches)
    return CLIPPING[name](params)
