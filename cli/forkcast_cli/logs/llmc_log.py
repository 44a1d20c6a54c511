"""llm.c's main.log: `s:250 trl:6.1818 lr:0.000215 norm:0.90`, older `s:250 trl:6.18`; `s:250 tel:6.17` is
the validation loss.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_LINE: Final = re.compile(
    rf"s:(\d+) (trl|tel):{NUMBER}(?: lr:{NUMBER})?(?: norm:{NUMBER})?", re.ASCII
)


def _read(line: str) -> Values | None:
    found = _LINE.match(line)
    if found is None:
        return None
    step, kind, *numbers = found.groups()
    return {"s": step, **dict(zip((kind, "lr", "norm"), numbers, strict=True))}


FORMAT: Final = TextFormat(name="llm.c main.log", reader=lambda: Stateless(_read))
