"""fairseq: `... | INFO | train_inner | {"epoch": 1, "loss": "9.812", "num_updates": "250", ...}`, or the
same as `epoch 001:    250 / 1000 loss=9.812, ..., num_updates=250, ...`. Its losses are in bits.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_JSON: Final = re.compile(r"\| (train_inner|valid) \| (\{.*\})")
_SIMPLE: Final = re.compile(r"\bepoch \d+:\s+\d+ / \d+ (?=loss=|.*\bloss=)")
_PAIR: Final = re.compile(rf"\b(\w+)={NUMBER}")
_BITS: Final = ("loss", "nll_loss", "valid_loss", "valid_nll_loss")


def _read(line: str) -> Values | None:
    if found := _JSON.search(line):
        try:
            values = json.loads(found[2])
        except (ValueError, RecursionError):
            return None
        step = values.pop("valid_num_updates", None)
        return _in_nats(values if step is None else {**values, "num_updates": step})
    if found := _SIMPLE.search(line):
        return _in_nats(dict(_PAIR.findall(line, found.end())))
    return None


def _in_nats(values: dict[str, Any]) -> Values:
    for name in _BITS:
        try:
            values[name] = float(values[name]) * math.log(2)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return values


FORMAT: Final = TextFormat(
    name="fairseq",
    reader=lambda: Stateless(_read),
    note="losses are printed in bits and were turned into nats",
)
