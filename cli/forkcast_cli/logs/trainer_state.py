"""Hugging Face's trainer_state.json (`log_history`), and any other JSON document that is or holds a list
of entries: read entry by entry, whatever its size.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from forkcast_cli.logs.base import LogError, Row, WholeFormat
from forkcast_cli.logs.json_lines import flat
from forkcast_cli.logs.stream import Stream

_HISTORY: Final = re.compile(r'"log_history"\s*:\s*\[')
_LIST: Final = re.compile(
    r'(?:^\s*|"(?:history|logs?|metrics|steps|records|data)"\s*:\s*)\[\s*(?=\{)'
)
_FOLLOWING: Final = re.compile(r"[^\s,]")
_LONGEST_ENTRY: Final = 1 << 22


def _text(head: bytes) -> str:
    return head.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")


def _start(text: str) -> int | None:
    """Where the first entry of the list begins."""
    found = _HISTORY.search(text) or _LIST.search(text)
    return found.end() if found else None


def _fits(head: bytes) -> bool:
    text = _text(head)
    if not text.lstrip().startswith(("{", "[")) or _start(text) is None:
        return False
    first = text.lstrip().partition("\n")[0]
    try:
        return _HISTORY.search(first) is not None or not isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return True


def _rows(stream: Stream) -> Iterator[Row]:
    decode = json.JSONDecoder().raw_decode
    text = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    held, started = "", False
    for chunk in stream.chunks():
        held += text.decode(chunk)
        at: int | None = 0
        if not started:
            at = _start(held)
            if at is None:
                continue
            started = True
        assert at is not None
        while True:
            following = _FOLLOWING.search(held, at)
            at = len(held) if following is None else following.start()
            if held.startswith("]", at):
                return
            try:
                entry, at = decode(held, at)
            except (ValueError, RecursionError):
                break
            if isinstance(entry, dict) and not _closing(entry):
                yield Row(flat(entry))
        held = held[at:]
        if len(held) > _LONGEST_ENTRY:
            raise LogError("an entry of the list is not JSON", "give the file as it was written")
    stream.cut_short = True
    if held.strip() and len(held) > 1 and not held.lstrip().startswith("{"):
        raise LogError("an entry of the list is not JSON", "give the file as it was written")


def _closing(entry: dict[str, Any]) -> bool:
    """The Trainer's last entry: its `train_loss` is the mean over the run."""
    return "train_runtime" in entry


FORMAT: Final = WholeFormat(name="JSON document", fits=_fits, rows=_rows)
