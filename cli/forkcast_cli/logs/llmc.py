"""llm.c's stdout: `step  251/19560 | loss 6.139500 (-0.41z)| norm 0.7512 (-0.90z)| lr 2.15e-04 | ...`.

It counts from 1, main.log from 0. `val loss 6.17` has no step of its own.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_Z: Final = r"(?: \(\S+\s*z\))?"
_STEP: Final = re.compile(
    rf"\bstep\s+(\d+)/\d+ \| (?:train )?loss {NUMBER}{_Z}"
    rf"(?:\s*\| norm {NUMBER}{_Z})?(?:\s*\| lr {NUMBER})?"
)
_VALIDATION: Final = re.compile(rf"^val loss {NUMBER}")


def _read(line: str) -> Values | None:
    if found := _STEP.search(line):
        return dict(zip(("step", "loss", "norm", "lr"), found.groups(), strict=True))
    if found := _VALIDATION.match(line):
        return {"val loss": found[1]}
    return None


FORMAT: Final = TextFormat(name="llm.c", reader=lambda: Stateless(_read))
