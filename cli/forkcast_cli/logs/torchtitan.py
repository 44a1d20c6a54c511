"""torchtitan's log: `step: 250  loss:  5.81234  grad_norm:  0.9512  memory: 41.12GiB(51.85%)  ...`."""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(
    rf"\b(validate )?step:\s*(\d+)\s+loss:\s*{NUMBER}(?:\s+grad_norm:\s*{NUMBER})?"
    r"(?=\s.*\b(?:memory|tps|tflops|mfu|lr):)"
)


def _read(line: str) -> Values | None:
    found = _STEP.search(line)
    if found is None:
        return None
    held_out, step, loss, norm = found.groups()
    if held_out:
        return {"step": step, "validation loss": loss}
    return {"step": step, "loss": loss} | ({} if norm is None else {"grad_norm": norm})


FORMAT: Final = TextFormat(name="torchtitan", reader=lambda: Stateless(_read))
