"""Megatron-LM, GPT-NeoX, Megatron-DeepSpeed: ` iteration      250/  500000 | consumed samples: ... |`.

An iteration that the loss scaler skipped prints no loss, or 0; it is no step. One whose loss was NaN
prints none either, only that it was NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from forkcast_cli.logs.base import LineReader, Row, TextFormat
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(r"\biteration\s+(\d+)/\s*\d+ \|")
_PAIR: Final = re.compile(rf"\|\s*([a-z][\w /()-]*?)\s*:\s*{NUMBER}", re.IGNORECASE)
_VALIDATION: Final = re.compile(
    rf"\bvalidation (?:loss|results) at iteration\s+(\d+)\b.*?\|\s*lm[ _]loss(?: value)?: {NUMBER}"
)
_LOSSES: Final = ("lm loss", "lm_loss", "loss", "total loss")


class _Reader(LineReader):
    def __init__(self) -> None:
        self._skipped = 0

    def rows(self, line: str) -> Iterable[Row]:
        if found := _STEP.search(line):
            values = {name.lower(): number for name, number in _PAIR.findall(line, found.end() - 1)}
            if _count(values, "number of nan iterations"):
                values["lm loss"] = "nan"
            elif skipped := _count(values, "number of skipped iterations"):
                self._skipped += skipped
                if all(float(values.get(name, 0)) == 0 for name in _LOSSES):
                    return ()
            return (Row({"iteration": found[1], **values}),)
        if found := _VALIDATION.search(line):
            return (Row({"iteration": found[1], "lm loss validation": found[2]}),)
        return ()

    def remarks(self) -> list[str]:
        skipped = f"{self._skipped:,} iterations were skipped by the loss scaler"
        return [skipped] if self._skipped else []


def _count(values: dict[str, str], name: str) -> int:
    number = values.get(name, "")
    return int(number) if number.isdecimal() else 0


FORMAT: Final = TextFormat(name="Megatron-LM or GPT-NeoX", reader=_Reader)
