"""How unusual a volatility is, in words: from healthy rows, of real logs and simulated
(docs/experiments.md).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

#: u, and of how many healthy rows one reaches it: as on the logs or in the simulation, whichever is more
#: frequent; above 3.2, which the logs are too short for, as the simulation falls off from there.
_ONCE_IN: Final = (
    (1.6, 1_900),
    (2.0, 7_000),
    (2.4, 27_000),
    (2.8, 80_000),
    (3.2, 120_000),
    (3.6, 400_000),
    (4.0, 1_000_000),
)
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
