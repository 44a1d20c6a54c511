"""build-nanogpt's log.txt: `250 train 5.913337`, `250 val 5.9001`, `250 hella 0.2471`."""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_LINE: Final = re.compile(rf"(\d+) (train|val) {NUMBER}\s*")


def _read(line: str) -> Values | None:
    found = _LINE.fullmatch(line)
    return {"step": found[1], f"{found[2]} loss": found[3]} if found else None


FORMAT: Final = TextFormat(name="build-nanogpt log.txt", reader=lambda: Stateless(_read))
