"""Containers of format version 1, which older runs hold: they are read, no longer written.

Layout (docs/checkpoint-format.md)::

    8 bytes   magic "FCPTZ\\x00\\x00\\x01"
    8 bytes   header length, little endian
    header    UTF-8 JSON: {"meta": {...}, "tensors": [{name, dtype, shape, codec, offset, size,
              raw_size, sha256}, ...]}; offsets count from the end of the header
    frames    one a tensor, in header order, without gaps

Every byte is covered: the header by the manifest's digest of the file, each tensor by its sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import zstandard
from torch import Tensor

from forkcast_trainer.table import (
    DTYPES,
    MAX_HEADER,
    MAX_TENSORS,
    CheckpointError,
    is_size,
    no_container,
    refuse_no_bool,
)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ContainerV1:
    """A container whose header is read and whose frames are where its table says."""

    file: str
    meta: Mapping[str, Any]
    table: Mapping[str, Entry]
    frames: memoryview

    @property
    def coded(self) -> frozenset[str]:
        """None is: this version has lossless frames only."""
        return frozenset()

    def tensors(self, names: Iterable[str], threads: int) -> dict[str, Tensor]:  # noqa: ARG002
        """The tensors, each verified, one after the other: a frame is a whole tensor."""
        return {name: _tensor(self.table[name], self._frame(name), self.file) for name in names}

    def verify(self, threads: int) -> None:  # noqa: ARG002
        """Needs a MiB of memory, whatever the file claims. Raises CheckpointError."""
        for name, row in self.table.items():
            seen, size = hashlib.sha256(), 0
            for chunk in _chunks(row, self._frame(name), self.file):
                seen.update(chunk)
                size += len(chunk)
            if size != row.raw_size or seen.hexdigest() != row.sha256:
                raise CheckpointError(f"{self.file}: {name}: contents are damaged")

    def _frame(self, name: str) -> memoryview:
        row = self.table[name]
        return self.frames[row.offset : row.offset + row.size]


def opened(data: memoryview, file: str, digest: str | None) -> ContainerV1:
    """digest: sha256 of the file, hex. Raises CheckpointError for a header that contradicts itself or
    the file.
    """
    if len(data) < 16:
        raise no_container(file)
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{file}: digest differs from the manifest's")
    (length,) = struct.unpack("<Q", data[8:16])
    if length > min(MAX_HEADER, len(data) - 16):
        raise CheckpointError(f"{file}: header length {length} is impossible")
    try:
        header = json.loads(bytes(data[16 : 16 + length]))
        entries, meta = header["tensors"], header["meta"]
        table = {row.name: row for row in (_entry(one, file) for one in entries[:MAX_TENSORS])}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: header is damaged") from error
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{file}: {len(entries)} tensors are no model's")
    if not isinstance(meta, dict) or len(table) != len(entries):
        raise CheckpointError(f"{file}: header is damaged")
    place, frames = 0, data[16 + length :]
    for row in table.values():
        if row.offset != place:
            raise CheckpointError(f"{file}: {row.name}: frames overlap or leave a gap")
        place += row.size
    if place != len(frames):
        raise CheckpointError(f"{file}: surplus or missing bytes")
    return ContainerV1(file, meta, table, frames)


@dataclass(frozen=True)
class Entry:
    """One row of the tensor table, checked."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: str
    offset: int
    size: int
    raw_size: int
    sha256: str


def _entry(given: Mapping[str, Any], file: str) -> Entry:
    """Raises CheckpointError if the row contradicts itself; KeyError, TypeError otherwise."""
    name, shape = str(given["name"]), tuple(given["shape"])
    if not all(map(is_size, (*shape, given["offset"], given["size"], given["raw_size"]))):
        raise CheckpointError(f"{file}: {name}: sizes are no sizes")
    dtype = DTYPES.get(given["dtype"])
    if dtype is None:
        raise CheckpointError(f"{file}: {name}: unknown dtype {given['dtype']}")
    if given["codec"] not in ("raw", "zstd"):
        raise CheckpointError(f"{file}: {name}: unknown codec {given['codec']}")
    if given["raw_size"] != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file}: {name}: sizes contradict the shape")
    return Entry(
        name,
        dtype,
        shape,
        given["codec"],
        given["offset"],
        given["size"],
        given["raw_size"],
        given["sha256"],
    )


def _chunks(entry: Entry, frame: memoryview, file: str) -> Iterable[bytes | memoryview]:
    """The tensor's bytes in pieces of a MiB; never more of them than the table says."""
    if entry.codec == "raw":
        for place in range(0, len(frame), _CHUNK):
            yield frame[place : place + _CHUNK]
        return
    try:
        # a frame that states another size is not unpacked at all
        if zstandard.frame_content_size(frame) != entry.raw_size:
            raise CheckpointError(f"{file}: {entry.name}: the frame's size is not the table's")
        reader = zstandard.ZstdDecompressor().stream_reader(frame)
        while chunk := reader.read(_CHUNK):
            yield chunk
    except zstandard.ZstdError as error:
        raise CheckpointError(f"{file}: {entry.name}: {error}") from error


def _tensor(entry: Entry, frame: memoryview, file: str) -> Tensor:
    try:
        raw = bytearray()  # it grows with what is there: a size that is only claimed costs nothing
        for chunk in _chunks(entry, frame, file):
            if len(raw) + len(chunk) > entry.raw_size:
                raise CheckpointError(f"{file}: {entry.name}: contents are damaged")
            raw += chunk
        if len(raw) != entry.raw_size or hashlib.sha256(raw).hexdigest() != entry.sha256:
            raise CheckpointError(f"{file}: {entry.name}: contents are damaged")
        if not raw:
            return torch.empty(entry.shape, dtype=entry.dtype)
        flat = torch.frombuffer(raw, dtype=torch.uint8)
        if entry.dtype is torch.bool:
            refuse_no_bool(flat, file, entry.name)
        return flat.view(entry.dtype).reshape(entry.shape)
    except (MemoryError, RuntimeError) as error:  # torch's own word for a shape that is none
        raise CheckpointError(f"{file}: {entry.name}: does not fit into memory") from error
