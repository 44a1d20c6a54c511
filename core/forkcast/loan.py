"""Learning-rate cuts still in force, and the increases that a Calm branch may try: a cut is a loan."""

from __future__ import annotations

import math
from collections.abc import Sequence

from forkcast.lineage import LineageEntry, in_force

#: A rate at or above this part of its schedule counts as paid back: what is left would move the
#: loss by less than any margin, and costs a whole branch to try.
PAID_BACK = 0.95


def rate_in_force(entries: Sequence[LineageEntry], epoch: int) -> float:
    """The factor on the scheduled learning rate that the collapses of a lineage left, > 0."""
    return math.prod(entry.action.learning_rate_scale for entry in in_force(entries, epoch))


def repayments(entries: Sequence[LineageEntry], epoch: int) -> tuple[float, ...]:
    """The factors a loan branch offers, each > 1, the larger first: what undoes the last cut, or all
    that is outstanding where that is less; and half of it on the scale of logarithms. Empty where
    nothing is outstanding.
    """
    rate = rate_in_force(entries, epoch)
    if rate >= PAID_BACK:
        return ()
    scales = (entry.action.learning_rate_scale for entry in in_force(entries, epoch))
    last_cut = next(scale for scale in scales if scale < 1.0)
    whole = min(1 / rate, 1 / last_cut)
    return whole, math.sqrt(whole)
