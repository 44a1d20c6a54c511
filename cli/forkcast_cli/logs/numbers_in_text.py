"""Numbers as programs print them."""

from __future__ import annotations

from typing import Final

#: A group that takes a number, NaN and infinity included.
NUMBER: Final = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|[nN]a[nN]|[iI]nf(?:inity)?))"
_LONGEST: Final = 64


def as_number(value: object) -> float | None:
    """A number, or a text that is one ("NaN" and "Infinity" are); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > _LONGEST:
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
