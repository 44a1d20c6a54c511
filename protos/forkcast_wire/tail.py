"""The open tail of a history on disk: frames of rows, each written at once and read by its checksum.

A frame is `_MAGIC`, the length and the CRC-32 of what follows (both little-endian uint32), and a
TailFrame message. Bytes that are no frame, e.g. one that a crash cut short, are passed over up to the
next magic: whatever is damaged costs the rows of its own frame. The magic is no UTF-8, so no name in a
row can hold it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from operator import attrgetter
from typing import Any

from google.protobuf.message import DecodeError

from forkcast.records import Event, Index, StepStats
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import MOST

_MAGIC = b"\xfcTL1"
_HEAD = struct.Struct("<4sII")
_NO_TIER = -1
_MOST_TIER = 127
_LISTS = ("attention_entropy", "activation_mean", "activation_sd")


@dataclass(frozen=True, slots=True)
class Row:
    """One step as it was accepted. index, z: 0 if no detector judged it. event: what began at this step,
    in words. onset_step: the first step of the event's departure.
    """

    stats: pb.StepStats
    index: float = 0.0
    z: float = 0.0
    components: Mapping[str, float] = field(default_factory=dict)
    tier: int | None = None
    event: str | None = None
    onset_step: int | None = None


def judged(stats: pb.StepStats, index: Index, event: Event | None) -> Row:
    """A row of a step that a detector has judged."""
    cause, onset = (None, None) if event is None else (event.cause, event.onset_step)
    return Row(stats, index.index, index.z, index.components, int(index.tier), cause, onset)


def encoded(rows: Sequence[Row], signals: Iterable[str]) -> bytes:
    """One frame. signals: whose components have a column even if no row has one."""
    frame = pb.TailFrame()
    frame.stats.extend([row.stats for row in rows])
    frame.index.extend([row.index for row in rows])
    frame.z.extend([row.z for row in rows])
    frame.tier.extend([_NO_TIER if row.tier is None else row.tier for row in rows])
    for number, row in enumerate(rows):
        if row.event is not None:
            frame.events[number] = row.event
        if row.onset_step is not None:
            frame.onsets[number] = row.onset_step
    for name in dict.fromkeys(chain(signals, *(row.components for row in rows))):
        column = frame.components.add()
        column.name = name
        column.values.extend([row.components.get(name, math.nan) for row in rows])
    frame.DiscardUnknownFields()  # a trainer's own: nobody would bound them
    return framed(frame)


def framed(frame: pb.TailFrame) -> bytes:
    """The bytes of a frame in the tail."""
    payload = frame.SerializeToString()
    return _HEAD.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def decoded(data: bytes) -> tuple[list[pb.TailFrame], bool]:
    """The frames of a tail, and whether all of its bytes are in them."""
    found: list[pb.TailFrame] = []
    at, whole = 0, True
    while at < len(data):
        frame, end = _frame(data, at)
        if frame is not None:
            found.append(frame)
            at = end
            continue
        whole = False
        at = data.find(_MAGIC, at + 1)
        if at < 0:
            break
    return found, whole


def _frame(data: bytes, at: int) -> tuple[pb.TailFrame | None, int]:
    """The frame that begins there, and its end; none if it is damaged, or cannot be of a history."""
    begins = at + _HEAD.size
    if begins > len(data):
        return None, at
    magic, length, checksum = _HEAD.unpack_from(data, at)
    end = begins + length
    if magic != _MAGIC or end > len(data):
        return None, at
    payload = data[begins:end]
    if zlib.crc32(payload) != checksum:
        return None, at
    frame = pb.TailFrame()
    try:
        frame.ParseFromString(payload)
    except DecodeError:
        return None, at
    return (frame, end) if _sound(frame) else (None, at)


def _sound(frame: pb.TailFrame) -> bool:
    """Whether its lists belong together and its integers fit the columns."""
    if not (count := len(frame.stats)):
        return False
    lengths = {len(frame.index), len(frame.z), len(frame.tier)}
    return (
        lengths | {len(one.values) for one in frame.components} == {count}
        and all(_NO_TIER <= tier <= _MOST_TIER for tier in frame.tier)
        and all(number < count for number in chain(frame.events, frame.onsets))
        and all(step <= MOST["step"] for step in frame.onsets.values())
        and all(max(map(attrgetter(name), frame.stats)) <= most for name, most in MOST.items())
    )


def columns(frames: Sequence[pb.TailFrame], component: str) -> dict[str, list[Any]]:
    """The rows of frames as columns, by name: those of StepStats in its order, ``index``, ``z``,
    ``tier``, ``event``, ``onset_step``, and the components. component: how the names of those begin.
    """
    records = [record for frame in frames for record in frame.stats]
    found = {one.name: _values(records, one.name) for one in fields(StepStats)}
    found["index"] = list(chain.from_iterable(frame.index for frame in frames))
    found["z"] = list(chain.from_iterable(frame.z for frame in frames))
    tiers = chain.from_iterable(frame.tier for frame in frames)
    found["tier"] = [None if tier == _NO_TIER else tier for tier in tiers]
    found["event"] = _by_row(frames, "events")
    found["onset_step"] = _by_row(frames, "onsets")
    named = [{one.name: one.values for one in frame.components} for frame in frames]
    for name in dict.fromkeys(chain.from_iterable(named)):
        found[component + name] = [
            None if math.isnan(value) else value
            for frame, one in zip(frames, named, strict=True)
            for value in one.get(name) or [math.nan] * len(frame.stats)
        ]
    return found


def _by_row(frames: Sequence[pb.TailFrame], name: str) -> list[Any]:
    """What few rows have; None in the others."""
    rows = (map(dict(getattr(one, name)).get, range(len(one.stats))) for one in frames)
    return list(chain.from_iterable(rows))


def _values(records: Sequence[pb.StepStats], name: str) -> list[Any]:
    get = attrgetter(name)
    if name in _LISTS:
        return [list(value) if value else None for value in map(get, records)]
    if name == "group_grad_norms":
        return [dict(value) if value else {} for value in map(get, records)]
    if pb.StepStats.DESCRIPTOR.fields_by_name[name].has_presence:
        return [get(one) if one.HasField(name) else None for one in records]
    return list(map(get, records))


def rows_of_columns(found: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns as rows."""
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
