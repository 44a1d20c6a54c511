"""OLMo and OLMo-core: a line `[step=250/1000,epoch=1]`, then one metric a line, indented:
`    train/CrossEntropyLoss=3.512`, `    train/CE loss=3.512`, `    optim/total_grad_norm=0.81`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from forkcast_cli.logs.base import LineReader, Row, TextFormat
from forkcast_cli.logs.numbers_in_text import NUMBER

_STEP: Final = re.compile(r"\[step=([\d,]+?)(?:/[\d,]+)?[,\]]")
_METRIC: Final = re.compile(rf"(?:\d+:)?\s+([A-Za-z][\w/ ().@-]*)={NUMBER}\s*")


class _Reader(LineReader):
    def __init__(self) -> None:
        self._step: str | None = None

    def rows(self, line: str) -> Iterable[Row]:
        if found := _STEP.search(line):
            self._step = found[1].replace(",", "")
            return ()
        found = _METRIC.fullmatch(line) if self._step is not None else None
        return (Row({"step": self._step, found[1].strip(): found[2]}),) if found else ()


FORMAT: Final = TextFormat(name="OLMo", reader=_Reader)
