"""How unusual a volatility is, in words: from simulated healthy rows (docs/experiments.md)."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

#: u, and of how many healthy rows one reaches it.
_ONCE_IN: Final = ((1.6, 2_000), (2.0, 8_000), (2.5, 25_000), (3.2, 100_000), (4.0, 500_000))
_MORE: Final = "about once in more than {:,} healthy steps"


def how_rare(u: float) -> str:
    """In words, e.g. "about once in 80,000 healthy steps"."""
    at = bisect_right(_ONCE_IN, (u, 1 << 60))
    if at == 0:
        return "nothing unusual"
    if at == len(_ONCE_IN):
        return _MORE.format(_ONCE_IN[-1][1])
    (low, few), (high, many) = _ONCE_IN[at - 1], _ONCE_IN[at]
    once = few * (many / few) ** ((u - low) / (high - low))
    digits = 10 ** (len(str(int(once))) - 1)
    return f"about once in {round(once / digits) * digits:,} healthy steps"
