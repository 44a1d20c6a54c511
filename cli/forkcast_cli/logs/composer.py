"""Composer and LLM Foundry: a line `[batch=250/4800]:`, then one metric a line:
`	 Train loss/train/total: 2.3451`, `	 Train l2_norm/grad/global: 0.8312`. If the line is
`[epoch=2][batch=5/48]:`, batches are counted anew in each epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from forkcast_cli.logs.base import LineReader, Row, TextFormat
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(r"(?:\[epoch=(\d+)(?:/\d+)?\])?\[batch=(\d+)/(\d+)\]:")
#: Behind the label that srun and others put before each line.
_METRIC: Final = re.compile(rf"(?:\d+:)?\s*(?:Train|Eval) ([\w/.-]+): {NUMBER}\s*")


class _Reader(LineReader):
    def __init__(self) -> None:
        self._step: int | None = None

    def rows(self, line: str) -> Iterable[Row]:
        if found := _STEP.search(line):
            epoch, batch, batches = (
                int(one) if one and len(one) < 10 else 0 for one in found.groups()
            )
            self._step = max(epoch - 1, 0) * batches + batch
            return ()
        found = _METRIC.fullmatch(line) if self._step is not None else None
        return (Row({"batch": self._step, found[1]: found[2]}),) if found else ()


FORMAT: Final = TextFormat(name="Composer", reader=_Reader)
