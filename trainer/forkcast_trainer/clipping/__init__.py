"""Clipping policies by name. To add one: a file here, and a line in CLIPPING."""

from __future__ import annotations

from collections.abc import Mapping

from forkcast_trainer.clipping.arc import Arc
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

    Raises ValueError for an unknown name, a parameter that is unknown or out of range, or too few
    micro-batches.
    """
    if name not in CLIPPING:
        raise ValueError(f"clipping policy: unknown {name}; one of {', '.join(CLIPPING)}")
    policy = CLIPPING[name](params)
    policy.check(micro_batches)
    return policy
