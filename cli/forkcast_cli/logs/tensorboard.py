"""TensorBoard event files, without TensorFlow: TFRecords of Event{2: step, 5: Summary{1: Value{1: tag, 2: simple_value, 8: tensor}}}.

A last record that is cut short, as a running writer leaves it, is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from forkcast_cli.logs.base import LogError, Row, WholeFormat
from forkcast_cli.logs.protobuf import WrongMessageError, as_int64, fields
from forkcast_cli.logs.stream import Stream
from forkcast_wire import tfrecords

_FLOAT: Final = struct.Struct("<f")
_DOUBLE: Final = struct.Struct("<d")
_DT_FLOAT, _DT_DOUBLE = 1, 2


def _rows(stream: Stream) -> Iterator[Row]:
    for number, record in enumerate(_records(stream), 1):
        try:
            step, values = _event(record)
        except (WrongMessageError, struct.error) as error:
            raise LogError(f"record {number} is no event: {error}", "give another file") from None
        if values:
            yield Row({"step": step, **values})


def _records(stream: Stream) -> Iterator[bytes]:
    try:
        yield from tfrecords.records(stream.read)
    except tfrecords.CutShortError:
        stream.cut_short = True
    except tfrecords.RecordError as error:
        raise LogError(str(error), "give an intact copy") from None


def _event(record: bytes) -> tuple[int, dict[str, float]]:
    """(step, scalars by tag) of an Event."""
    step, values = 0, {}
    for number, content in fields(record):
        if number == 2 and isinstance(content, int):
            step = as_int64(content)
        elif number == 5 and isinstance(content, bytes):
            for inner, summary in fields(content):
                if inner == 1 and isinstance(summary, bytes):
                    tag, scalar = _value(summary)
                    if scalar is not None:
                        values[tag] = scalar
    return step, values


def _value(summary: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for number, content in fields(summary):
        if number == 1 and isinstance(content, bytes):
            tag = content.decode("utf-8", errors="replace")
        elif number == 2 and isinstance(content, bytes) and len(content) == _FLOAT.size:
            (scalar,) = _FLOAT.unpack(content)
        elif number == 8 and isinstance(content, bytes):
            scalar = _tensor(content)
    return tag, scalar


def _tensor(tensor: bytes) -> float | None:
    """A TensorProto of one float or double: {1: dtype, 4: bytes, 5: floats, 6: doubles}."""
    kind, found = 0, b""
    for number, content in fields(tensor):
        if number == 1 and isinstance(content, int):
            kind = content
        elif number in (4, 5, 6) and isinstance(content, bytes):
            found = content
    form = {_DT_FLOAT: _FLOAT, _DT_DOUBLE: _DOUBLE}.get(kind)
    return float(form.unpack(found)[0]) if form and len(found) == form.size else None


FORMAT: Final = WholeFormat(name="TensorBoard events", fits=tfrecords.begins, rows=_rows)
