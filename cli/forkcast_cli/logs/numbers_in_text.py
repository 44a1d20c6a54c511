"""Numbers as programs print them."""

from __future__ import annotations

import re
from typing import Final

_GROUPED: Final = r"\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?"
#: A group that takes a number: NaN, infinity and commas between thousands included.
NUMBER: Final = (
    rf"([-+]?(?:{_GROUPED}|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|[nN]a[nN]|[iI]nf(?:inity)?))"
)
_THOUSANDS: Final = re.compile(rf"\s*[-+]?{_GROUPED}\s*")
_LONGEST: Final = 64


def as_number(value: object) -> float | None:
    """A number, or a text that is one ("NaN", "Infinity" and "1,234.5" are); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > _LONGEST:
        return None
    if isinstance(value, str) and "," in value and _THOUSANDS.fullmatch(value):
        value = value.replace(",", "")
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
