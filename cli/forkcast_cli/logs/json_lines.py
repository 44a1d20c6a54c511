"""One JSON object a line, of loops of one's own and of dumps of W&B or Lightning; a prefix such as a
logger's is passed over, nested objects become `outer/inner`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from forkcast_cli.logs.base import LineReader, Row, TextFormat, Values

_DEEPEST = 4


class _Reader(LineReader):
    def __init__(self) -> None:
        self._decoder = json.JSONDecoder()
        self._bad = 0

    def rows(self, line: str) -> Iterable[Row]:
        start = line.find("{")
        if start < 0:
            return ()
        try:
            values, _ = self._decoder.raw_decode(line, start)
        except (ValueError, RecursionError):
            self._bad += line.startswith('{"')
            return ()
        return (Row(flat(values)),)

    def remarks(self) -> list[str]:
        return [f"{_lines(self._bad)} no JSON: left out"] if self._bad else []


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count:,} lines are"


def flat(values: dict[str, Any]) -> Values:
    """Objects in objects as ``outer/inner``."""
    if not any(isinstance(value, dict) for value in values.values()):
        return values
    return dict(_flattened(values, "", 0))


def _flattened(values: dict[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if not isinstance(value, dict):
            yield f"{prefix}{name}", value
        elif depth < _DEEPEST:
            yield from _flattened(value, f"{prefix}{name}/", depth + 1)


FORMAT: Final = TextFormat(name="JSON lines", reader=_Reader)
