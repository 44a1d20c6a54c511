"""build-nanogpt's stdout: `step   250 | loss: 5.913337 | lr 2.1063e-04 | norm: 1.0912 | dt: ...`."""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(
    rf"\bstep\s+(\d+) \| loss: {NUMBER}(?: \| lr:? {NUMBER})?(?: \| norm: {NUMBER})?"
)
_VALIDATION: Final = re.compile(rf"^validation loss: {NUMBER}")


def _read(line: str) -> Values | None:
    if found := _STEP.search(line):
        return dict(zip(("step", "loss", "lr", "norm"), found.groups(), strict=True))
    if found := _VALIDATION.search(line):
        return {"validation loss": found[1]}
    return None


FORMAT: Final = TextFormat(name="build-nanogpt", reader=lambda: Stateless(_read))
