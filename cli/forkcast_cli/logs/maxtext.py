"""MaxText's log: `completed step: 250, seconds: 1.150, TFLOP/s/device: 470.000, ..., loss: 6.012`."""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(rf"\bcompleted step: (\d+), .*?\bloss: {NUMBER}")
_EVALUATION: Final = re.compile(rf"\beval metrics after step: (\d+), .*?\bloss[=:] ?{NUMBER}")


def _read(line: str) -> Values | None:
    if found := _STEP.search(line):
        return {"step": found[1], "loss": found[2]}
    if found := _EVALUATION.search(line):
        return {"step": found[1], "eval_loss": found[2]}
    return None


FORMAT: Final = TextFormat(name="MaxText", reader=lambda: Stateless(_read))
