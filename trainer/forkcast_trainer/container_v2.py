"""Containers of format version 2: independent frames, an index that binds them, and no pickle.

Layout (docs/checkpoint-format.md)::

    8 bytes    magic "FCPTZ\\x00\\x00\\x02"
    8 bytes    the index's offset, little endian
    8 bytes    the index's length
    32 bytes   the index's sha256
    8 bytes    zeros
    frames     one for each chunk of each tensor, in the index's order, without gaps
    index      UTF-8 JSON: {"chunk_bytes", "meta": {...}, "tensors": [{name, dtype, shape, frames:
               [[offset, length, codec, blake3], ...]}, ...]}

Every byte is covered: a frame by its digest in the index, the index by its own, which the manifest
of the state repeats. So a single tensor is read, and is known to be that state's, without the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from forkcast_trainer.frame_codecs import CODECS
from forkcast_trainer.table import (
    DTYPE_NAMES,
    DTYPES,
    MAGIC,
    MAX_HEADER,
    MAX_TENSORS,
    CheckpointError,
    Role,
    Snapshot,
    is_size,
    no_container,
)

T = TypeVar("T")
#: Of a tensor in one frame. What a thread holds is a few times this.
CHUNK_BYTES = 4 << 20
#: Chunks of whole elements of every dtype, and of no more memory than a reader has to spare.
_CHUNK_UNIT, _MOST_CHUNK = 8, 64 << 20
_HEAD = struct.Struct("<8sQQ32s8x")


#: Of moments in 8 bits.
_OF_ROLE = {Role.FIRST_MOMENT: "first8", Role.SECOND_MOMENT: "second8"}


def write(
    snapshot: Snapshot,
    path: Path,
    level: int,
    threads: int,
    chunk_bytes: int = CHUNK_BYTES,
    *,
    int8: bool = False,
) -> str:
    """Write the container; level 0 stores raw frames, otherwise it is zstd's. int8: moments of known
    roles in 8 bits. The same snapshot gives the same bytes with any number of threads. Returns the
    sha256 of the index, hex.
    """
    jobs, rows = [], []
    for name, tensor in snapshot.tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{name}: a checkpoint holds no {tensor.dtype}")
        raw, itemsize = _raw(tensor), tensor.element_size()
        codecs = _codecs(tensor.dtype, snapshot.roles.get(name) if int8 else None, level)
        for at in range(0, len(raw), chunk_bytes):
            jobs.append(partial(_encoded, raw[at : at + chunk_bytes], itemsize, codecs, level))
        rows.append((name, tensor, math.ceil(len(raw) / chunk_bytes)))
    with path.open("wb") as out:
        out.write(bytes(_HEAD.size))  # until all is there, the file is no container
        place, frames = _HEAD.size, in_order(jobs, threads)
        table = []
        for name, tensor, count in rows:
            told: list[list[int | str]] = []
            for _ in range(count):
                used, frame, digest = next(frames)
                out.write(frame)
                told.append([place, len(frame), used, digest])
                place += len(frame)
            dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
            table.append({"name": name, "dtype": dtype, "shape": shape, "frames": told})
        document = {"chunk_bytes": chunk_bytes, "meta": snapshot.meta, "tensors": table}
        index = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        whole = hashlib.sha256(index)
        out.write(index)
        out.seek(0)
        out.write(_HEAD.pack(MAGIC + b"\x02", place, len(index), whole.digest()))
    return whole.hexdigest()


def _raw(tensor: Tensor) -> NDArray[np.uint8]:
    """The tensor's bytes, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def _codecs(dtype: torch.dtype, role: Role | None, level: int) -> tuple[str, ...]:
    """Those that are tried for a tensor's chunks, in this order; raw takes whatever is left."""
    floats = dtype is torch.float32
    own = (_OF_ROLE[role],) if role is not None and floats else ()
    if not level:
        return own
    return (*own, "high8" if floats and level == 1 else "planes")


def _encoded(
    chunk: NDArray[np.uint8], itemsize: int, codecs: Iterable[str], level: int
) -> tuple[str, bytes | memoryview, str]:
    """The codec that was used, the frame and its digest, hex."""
    for codec in codecs:
        frame = CODECS[codec].encode(chunk, itemsize, level)
        if frame is not None and len(frame) < len(chunk):
            return codec, frame, _digest(frame)
    return "raw", chunk.data, _digest(chunk.data)


def _digest(frame: bytes | memoryview) -> str:
    found: str = blake3(frame).hexdigest()
    return found


def in_order(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """What the jobs return, in their order; twice as many as threads are under way at most."""
    if threads == 1:
        yield from (job() for job in jobs)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "container") as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) >= 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for one in pending:
                one.cancel()


@dataclass(frozen=True, slots=True)
class Frame:
    """Of one chunk: its place in the file, and how long the chunk is."""

    offset: int
    length: int
    codec: str
    blake3: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the index, checked."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    frames: Sequence[Frame]


def _size(row: Row) -> int:
    """Bytes of the tensor."""
    return math.prod(row.shape) * row.dtype.itemsize


class _Memory:
    """Where tensors are read to. numpy asks for large pages for whatever is large, if the system has
    them; to take small tensors from one piece of memory then saves half of the time that it costs.
    """

    _PIECE, _ALIGNED = 32 << 20, 64

    def __init__(self, size: int) -> None:
        """size: of all tensors, bytes. Nothing is taken yet."""
        self._left, self._piece, self._at = size, np.empty(0, np.uint8), 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """So many bytes, whatever is in them. Raises MemoryError, ValueError."""
        if 4 * size > self._PIECE:
            return np.empty(size, np.uint8)
        if self._at + size > len(self._piece):
            most = max(size, min(self._PIECE, 2 * self._left))  # the gaps are less than the tensors
            self._piece, self._at = np.empty(most, np.uint8), 0
        taken = self._piece[self._at : self._at + size]
        self._at += -(-size // self._ALIGNED) * self._ALIGNED
        self._left -= size
        return taken


@dataclass(frozen=True)
class ContainerV2:
    """A container whose index is verified and whose frames are where it says."""

    file: str
    meta: Mapping[str, Any]
    table: Mapping[str, Row]
    data: memoryview

    @property
    def coded(self) -> frozenset[str]:
        """Names of the tensors with a frame that is not lossless."""
        return frozenset(
            row.name
            for row in self.table.values()
            if not all(CODECS[frame.codec].LOSSLESS for frame in row.frames)
        )

    def tensors(self, names: Iterable[str], threads: int) -> dict[str, Tensor]:
        """The tensors, each verified. Memory for one is taken when its turn comes: a file that lies
        about the first never gets any for the second.
        """
        found: dict[str, Tensor] = {}
        rows = [self.table[name] for name in names]

        def jobs() -> Iterator[Callable[[], None]]:
            memory = _Memory(sum(_size(row) for row in rows))
            for row in rows:
                found[row.name], flat = self._empty(row, memory)
                at = 0
                for frame in row.frames:
                    yield partial(self._decode, row, frame, flat[at : at + frame.chunk])
                    at += frame.chunk

        for _ in in_order(jobs(), threads):
            pass
        return found

    def verify(self, threads: int) -> None:
        """Needs a few chunks of memory a thread, whatever the file claims. Raises CheckpointError."""

        def check(row: Row, frame: Frame) -> None:
            self._decode(row, frame, np.empty(frame.chunk, np.uint8))

        rows = self.table.values()
        for _ in in_order(
            (partial(check, row, one) for row in rows for one in row.frames), threads
        ):
            pass

    def _empty(self, row: Row, memory: _Memory) -> tuple[Tensor, NDArray[np.uint8]]:
        """A tensor to be filled, and its bytes."""
        try:
            if not row.frames:
                return torch.empty(row.shape, dtype=row.dtype), np.empty(0, np.uint8)
            flat = memory.take(_size(row))
            return torch.from_numpy(flat).view(row.dtype).reshape(row.shape), flat
        except (
            MemoryError,
            RuntimeError,
            ValueError,
        ) as error:  # their words for a shape that is none
            raise CheckpointError(f"{self.file}: {row.name}: does not fit into memory") from error

    def _decode(self, row: Row, frame: Frame, chunk: NDArray[np.uint8]) -> None:
        """Fill a chunk with what its frame holds. Raises CheckpointError."""
        stored = self.data[frame.offset : frame.offset + frame.length]
        if _digest(stored) != frame.blake3:
            raise CheckpointError(f"{self.file}: {row.name}: contents are damaged")
        try:
            CODECS[frame.codec].decode(stored, chunk, row.dtype.itemsize)
        except (ValueError, MemoryError) as error:
            raise CheckpointError(f"{self.file}: {row.name}: {error}") from error
        if row.dtype is torch.bool and chunk.max() > 1:
            raise CheckpointError(f"{self.file}: {row.name}: a bool is neither 0 nor 1")


def opened(data: memoryview, file: str, digest: str | None) -> ContainerV2:
    """digest: sha256 of the index, hex, from the manifest. Raises CheckpointError for an index that is
    not that, or that contradicts itself or the file.
    """
    if len(data) < _HEAD.size:
        raise no_container(file)
    _, place, length, own = _HEAD.unpack(data[: _HEAD.size])
    if place + length != len(data) or place < _HEAD.size or length > MAX_HEADER:
        raise CheckpointError(f"{file}: surplus or missing bytes")
    if any(data[_HEAD.size - 8 : _HEAD.size]):
        raise CheckpointError(f"{file}: its head is damaged")
    index = bytes(data[place:])
    found = hashlib.sha256(index)
    if found.digest() != own:
        raise CheckpointError(f"{file}: its index is damaged")
    if digest is not None and found.hexdigest() != digest:
        raise CheckpointError(f"{file}: digest differs from the manifest's")
    try:
        document = json.loads(index)
        meta, rows, chunk = (document[name] for name in ("meta", "tensors", "chunk_bytes"))
        given = [_row(one, chunk, file) for one in rows[: MAX_TENSORS + 1] if _is_chunk(chunk)]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its index is damaged") from error
    if len(rows) > MAX_TENSORS:
        raise CheckpointError(f"{file}: {len(rows)} tensors are no model's")
    table = {row.name: row for row in given}
    if not (isinstance(meta, dict) and _is_chunk(chunk) and len(table) == len(rows)):
        raise CheckpointError(f"{file}: its index is damaged")
    at = _HEAD.size
    for row in table.values():
        for frame in row.frames:
            if frame.offset != at:
                raise CheckpointError(f"{file}: {row.name}: frames overlap or leave a gap")
            at += frame.length
    if at != place:
        raise CheckpointError(f"{file}: surplus or missing bytes")
    return ContainerV2(file, meta, table, data)


def _is_chunk(chunk: object) -> bool:
    """Whether frames of so many bytes hold whole elements, and ask for no more memory than there is."""
    return isinstance(chunk, int) and 0 < chunk <= _MOST_CHUNK and chunk % _CHUNK_UNIT == 0


def _row(given: Mapping[str, Any], chunk: int, file: str) -> Row:
    """Raises CheckpointError if the row contradicts itself; KeyError, TypeError, ValueError otherwise."""
    name, shape = str(given["name"]), tuple(given["shape"])
    dtype = DTYPES.get(given["dtype"])
    if dtype is None:
        raise CheckpointError(f"{file}: {name}: unknown dtype {given['dtype']}")
    if not all(map(is_size, shape)):
        raise CheckpointError(f"{file}: {name}: sizes are no sizes")
    raw = math.prod(shape) * dtype.itemsize
    told = given["frames"]
    if len(told) != -(-raw // chunk):
        raise CheckpointError(f"{file}: {name}: sizes contradict the shape")
    frames = []
    for n, (offset, length, codec, digest) in enumerate(told):
        # no codec of a frame makes it longer than its chunk
        if not (is_size(offset) and is_size(length) and 0 < length <= min(chunk, raw - n * chunk)):
            raise CheckpointError(f"{file}: {name}: sizes are no sizes")
        if codec not in CODECS:
            raise CheckpointError(f"{file}: {name}: unknown codec {codec}")
        if CODECS[codec].FLOATS and dtype is not torch.float32:
            raise CheckpointError(f"{file}: {name}: {codec} is of float32, not of {given['dtype']}")
        frames.append(Frame(offset, length, codec, digest, min(chunk, raw - n * chunk)))
    return Row(name, dtype, shape, frames)
