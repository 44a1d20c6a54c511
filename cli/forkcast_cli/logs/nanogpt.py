"""nanoGPT's stdout: `iter 250: loss 3.9123, time 135.20ms, mfu 38.51%`.

The line `step 250: train loss 3.90, val loss 3.95` is an evaluation: both of its losses are held apart
from the training loss.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(rf"\biter (\d+): loss {NUMBER}")
_RATE: Final = re.compile(rf"\blr {NUMBER}")
_EVALUATION: Final = re.compile(rf"\bstep (\d+): train loss {NUMBER}, val loss {NUMBER}")


def _read(line: str) -> Values | None:
    if found := _STEP.search(line):
        rate = _RATE.search(line, found.end())
        values = {"iter": found[1], "loss": found[2]}
        return values | {"lr": rate[1]} if rate else values
    if found := _EVALUATION.search(line):
        return {"iter": found[1], "val loss": found[3]}
    return None


FORMAT: Final = TextFormat(
    name="nanoGPT",
    reader=lambda: Stateless(_read),
    note="each loss is that of one micro-batch of one rank",
)
