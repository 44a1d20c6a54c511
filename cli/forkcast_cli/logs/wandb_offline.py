"""W&B's own file of a run (`run-<id>.wandb`, offline or not yet uploaded): records of protobuf in
leveldb's log format, blocks of 32 KiB of (u32 CRC of type and data, u16 length, u8 type, data).

Record{2: HistoryRecord{1: HistoryItem{1: key, 2: nested key, 16: JSON value}, 2: HistoryStep{1: step}}}.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

from forkcast_cli.logs.base import LogError, Row, WholeFormat
from forkcast_cli.logs.json_lines import flat
from forkcast_cli.logs.protobuf import WrongMessageError, as_int64, fields
from forkcast_cli.logs.stream import Stream

#: ":W&B", the magic number 0xBEE1, version 0.
_IDENT: Final = b":W&B\xe1\xbe\x00"
_BLOCK: Final = 1 << 15
_HEADER: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_LONGEST: Final = 1 << 28


def _fits(head: bytes) -> bool:
    return head.startswith(_IDENT[:4])


def _rows(stream: Stream) -> Iterator[Row]:
    for number, record in enumerate(_records(stream), 1):
        try:
            for field, content in fields(record):
                if field == 2 and isinstance(content, bytes) and (values := _history(content)):
                    yield Row(flat(values))
        except WrongMessageError as error:
            raise LogError(f"record {number} is no record: {error}", "give another file") from None


def _records(stream: Stream) -> Iterator[bytes]:
    """Whole records; what a writer has not finished is left out."""
    if stream.read(len(_IDENT)) != _IDENT:
        raise LogError("is of a later version of W&B's format", "export the run as CSV")
    position, parts, number = len(_IDENT), b"", 1
    while True:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += len(stream.read(left))
            continue
        header = stream.read(_HEADER.size)
        if not header:
            stream.cut_short = bool(parts)
            return
        data = b""
        if len(header) == _HEADER.size:
            crc, length, kind = _HEADER.unpack(header)
            data = stream.read(length)
            if kind == length == crc == 0:  # the rest of a block that was never filled
                position += _HEADER.size + len(stream.read(left - _HEADER.size))
                continue
        if len(header) < _HEADER.size or len(data) < length:
            stream.cut_short = True
            return
        position += _HEADER.size + length
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc or kind not in range(1, 5):
            raise LogError(
                f"record {number} is damaged: its checksum is wrong", "give an intact copy"
            )
        parts = data if kind in {_FULL, _FIRST} else parts + data
        if len(parts) > _LONGEST:
            raise LogError(f"record {number} is damaged: it does not end", "give an intact copy")
        if kind in {_FULL, _LAST}:
            yield parts
            parts, number = b"", number + 1


def _history(record: bytes) -> dict[str, Any]:
    """The values of one call of `wandb.log`, with its number as `_step`."""
    values: dict[str, Any] = {}
    for number, content in fields(record):
        if not isinstance(content, bytes):
            continue
        if number == 1:
            name, value = _item(content)
            values[name] = value
        elif number == 2:
            for field, step in fields(content):
                if field == 1 and isinstance(step, int):
                    values["_step"] = as_int64(step)
    return values


def _item(item: bytes) -> tuple[str, Any]:
    keys, value = [], None
    for number, content in fields(item):
        if not isinstance(content, bytes):
            continue
        text = content.decode("utf-8", errors="replace")
        if number in (1, 2):
            keys.append(text)
        elif number == 16:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
    return "/".join(filter(None, keys)), value


FORMAT: Final = WholeFormat(name="W&B run file", fits=_fits, rows=_rows)
