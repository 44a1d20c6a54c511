"""The container `cp_<step>.ptz`: tensors as zstd frames behind a JSON header, and no pickle.

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
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
import transformers
import zstandard
from torch import Tensor

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_wire import keys
from forkcast_wire.documents import STATE_FORMAT, StateManifest, dump, read_manifest
from forkcast_wire.store import AlreadyExists, BadKey, KeyMissing

T = TypeVar("T")
MAGIC = b"FCPTZ\x00\x00\x01"
_MAX_HEADER = 64 << 20
_MAX_BYTES = 1 << 48
#: A table of more rows is no model's: AdamW keeps four tensors a parameter.
_MAX_TENSORS = 1 << 16
_CHUNK = 1 << 20
_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another run, or not a checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """A whole training state on the CPU. ``meta`` is JSON-ready; tensors are owned by it."""

    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def _raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write_container(snapshot: Snapshot, path: Path, level: int) -> str:
    """Write the container; level 0 stores raw frames. Returns the sha256 of the file, hex."""
    if not level:
        rows = [_row(name, t, "raw", _raw(t).nbytes) for name, t in snapshot.tensors.items()]
        return _assemble(snapshot, rows, path, (_raw(t) for t in snapshot.tensors.values()))
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    body = path.with_name(path.name + ".body")
    rows = []
    try:
        with body.open("wb") as file:
            for name, tensor in snapshot.tensors.items():
                frame = compressor.compress(_raw(tensor))
                file.write(frame)
                rows.append(_row(name, tensor, "zstd", len(frame)))
        with body.open("rb") as frames:
            return _assemble(snapshot, rows, path, iter(lambda: frames.read(1 << 22), b""))
    finally:
        body.unlink(missing_ok=True)


def _row(name: str, tensor: Tensor, codec: str, size: int) -> dict[str, Any]:
    raw = _raw(tensor)
    return {
        "name": name,
        "dtype": _NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "codec": codec,
        "size": size,
        "raw_size": raw.nbytes,
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def _assemble(
    snapshot: Snapshot,
    rows: Sequence[dict[str, Any]],
    path: Path,
    frames: Iterable[bytes | memoryview],
) -> str:
    """Header and frames into one file; returns its sha256, hex."""
    offset = 0
    for row in rows:
        row["offset"] = offset
        offset += row["size"]
    header = json.dumps({"meta": snapshot.meta, "tensors": rows}, sort_keys=True).encode()
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for piece in (MAGIC, struct.pack("<Q", len(header)), header):
            out.write(piece)
            digest.update(piece)
        for frame in frames:
            out.write(frame)
            digest.update(frame)
    return digest.hexdigest()


class Shaped(Protocol):
    """What is known of a tensor before its bytes are read."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes, ``[]`` for a single number."""


#: Refuses a container by its meta and its table, before a frame is unpacked: raises CheckpointError.
Admit: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Shaped]], None]


def read_container(path: Path, digest: str | None = None, admit: Admit | None = None) -> Snapshot:
    """The snapshot that a container holds, every byte verified.

    admit: may refuse it by its table, so that a file cannot claim more memory than the model that
    is to be restored has. Raises CheckpointError if the digest, a length, a dtype or a tensor's
    sha256 is wrong; the message names the part.
    """
    found = _opened(path, digest)
    if admit is not None:
        admit(found.meta, {row.name: row for row in found.table})
    tensors = {row.name: _tensor(row, found.frame(row), path.name) for row in found.table}
    return Snapshot(found.meta, tensors)


def verify_container(path: Path, digest: str | None = None) -> Mapping[str, Any]:
    """The meta of a container whose every byte is what it should be. Needs a MiB of memory,
    whatever the file claims. Raises CheckpointError as `read_container`.
    """
    found = _opened(path, digest)
    for row in found.table:
        seen, size = hashlib.sha256(), 0
        for chunk in _chunks(row, found.frame(row), path.name):
            seen.update(chunk)
            size += len(chunk)
        if size != row.raw_size or seen.hexdigest() != row.sha256:
            raise CheckpointError(f"{path.name}: {row.name}: contents are damaged")
    return found.meta


@dataclass(frozen=True)
class _Opened:
    """A container whose header is read and whose frames are where its table says."""

    meta: Mapping[str, Any]
    table: Sequence[_Entry]
    frames: memoryview

    def frame(self, row: _Entry) -> memoryview:
        return self.frames[row.offset : row.offset + row.size]


def _opened(path: Path, digest: str | None) -> _Opened:
    if path.stat().st_size < 16:
        raise CheckpointError(f"{path.name}: not a Forkcast checkpoint of format 1")
    with path.open("rb") as file:  # mapped: the file is not copied into memory
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path.name}: digest differs from the manifest's")
    if data[:8] != MAGIC:
        raise CheckpointError(f"{path.name}: not a Forkcast checkpoint of format 1")
    (length,) = struct.unpack("<Q", data[8:16])
    if length > min(_MAX_HEADER, len(data) - 16):
        raise CheckpointError(f"{path.name}: header length {length} is impossible")
    try:
        header = json.loads(bytes(data[16 : 16 + length]))
        entries, meta = header["tensors"], header["meta"]
        table = [_entry(row, path.name) for row in entries[:_MAX_TENSORS]]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: header is damaged") from error
    if len(entries) > _MAX_TENSORS:
        raise CheckpointError(f"{path.name}: {len(entries)} tensors are no model's")
    if not isinstance(meta, dict) or len({row.name for row in table}) != len(table):
        raise CheckpointError(f"{path.name}: header is damaged")
    place, frames = 0, data[16 + length :]
    for row in table:
        if row.offset != place:
            raise CheckpointError(f"{path.name}: {row.name}: frames overlap or leave a gap")
        place += row.size
    if place != len(frames):
        raise CheckpointError(f"{path.name}: surplus or missing bytes")
    return _Opened(meta, table, frames)


@dataclass(frozen=True)
class _Entry:
    """One row of the tensor table, checked."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: str
    offset: int
    size: int
    raw_size: int
    sha256: str


def _entry(given: Mapping[str, Any], file: str) -> _Entry:
    """Raises CheckpointError where the row contradicts itself; KeyError, TypeError otherwise."""
    name, shape = str(given["name"]), tuple(given["shape"])
    numbers = (*shape, given["offset"], given["size"], given["raw_size"])
    if not all(type(n) is int and 0 <= n <= _MAX_BYTES for n in numbers):
        raise CheckpointError(f"{file}: {name}: sizes are no sizes")
    dtype = _DTYPES.get(given["dtype"])
    if dtype is None:
        raise CheckpointError(f"{file}: {name}: unknown dtype {given['dtype']}")
    if given["codec"] not in ("raw", "zstd"):
        raise CheckpointError(f"{file}: {name}: unknown codec {given['codec']}")
    if given["raw_size"] != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file}: {name}: sizes contradict the shape")
    return _Entry(
        name,
        dtype,
        shape,
        given["codec"],
        given["offset"],
        given["size"],
        given["raw_size"],
        given["sha256"],
    )


def _chunks(entry: _Entry, frame: memoryview, file: str) -> Iterable[bytes | memoryview]:
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


def _tensor(entry: _Entry, frame: memoryview, file: str) -> Tensor:
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
        if entry.dtype is torch.bool and bool((flat > 1).any()):
            raise CheckpointError(f"{file}: {entry.name}: a bool is neither 0 nor 1")
        return flat.view(entry.dtype).reshape(entry.shape)
    except (MemoryError, RuntimeError) as error:  # torch's own word for a shape that is none
        raise CheckpointError(f"{file}: {entry.name}: does not fit into memory") from error


def publish(
    store: Store,
    snapshot: Snapshot,
    folder: str,
    kind: StateKind,
    scratch: Path,
    level: int,
    *,
    before_manifest: Callable[[], None] = lambda: None,
) -> StateRef:
    """Write container and manifest under ``folder``, the manifest last; returns the reference.
    before_manifest: called when all but the manifest is written, with which the state exists.

    Publishing the same state again is success. Raises CheckpointError where another state stands
    under the folder already.
    """
    meta = snapshot.meta
    path = _scratch_file(scratch, folder)
    try:
        digest = write_container(snapshot, path, level)
        ref = StateRef(
            key=folder,
            kind=kind,
            epoch=meta["epoch"],
            attempt=meta["attempt"],
            step=meta["step"],
            digest=digest,
            size_bytes=path.stat().st_size,
        )
        if (standing := read_manifest(store, folder)) is not None:  # its bytes must stay its own
            return _same(standing, ref)
        store.put_file(keys.ptz(folder, ref.step), path)
    finally:
        path.unlink(missing_ok=True)
    before_manifest()
    manifest = StateManifest(
        format_version=STATE_FORMAT,
        run_uid=meta["run_uid"],
        state=ref,
        lossless=True,
        loss=meta.get("loss"),
        versions=_versions(),
    )
    try:
        store.put(keys.state_manifest(folder), dump(manifest), create=True)
    except AlreadyExists:
        return _same(read_manifest(store, folder), ref)
    return ref


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def other_versions(store: Store, ref: StateRef) -> dict[str, str]:
    """The libraries that wrote the state in another version than this process has, by name. With
    those a resume is as good as ever, but no longer exact to the bit.
    """
    manifest, ours = read_manifest(store, ref.key), _versions()
    theirs = manifest.versions if manifest is not None else {}
    return {name: version for name, version in theirs.items() if ours.get(name) != version}


def _same(standing: StateManifest | None, ref: StateRef) -> StateRef:
    if standing is None or standing.state.digest != ref.digest:
        raise CheckpointError(f"{ref.key}: another state stands there")
    return ref


def _scratch_file(scratch: Path, folder: str) -> Path:
    """A temporary file of this process for one state; `sweep` knows whose it is."""
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch / f"{os.getpid()}.{folder.replace('/', '_')}"


def sweep(scratch: Path) -> None:
    """Remove what killed processes have left in a scratch folder of this machine."""
    for path in scratch.glob("*.*"):
        owner = path.name.partition(".")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)


def fetch(
    store: Store, ref: StateRef, scratch: Path, run_uid: str, admit: Admit | None = None
) -> Snapshot:
    """The verified state behind a reference; admit: see `read_container`.

    Raises CheckpointError if it is missing, damaged, of another run, or not the state that the
    reference says.
    """

    def read(path: Path) -> tuple[Mapping[str, Any], Snapshot]:
        saved = read_container(path, ref.digest, admit)
        return saved.meta, saved

    return _fetched(store, ref, scratch, run_uid, read)


def verify(store: Store, ref: StateRef, scratch: Path, run_uid: str) -> None:
    """Read a state back, every byte, in a MiB of memory. Raises CheckpointError as `fetch`."""
    _fetched(store, ref, scratch, run_uid, lambda p: (verify_container(p, ref.digest), None))


def _fetched(
    store: Store,
    ref: StateRef,
    scratch: Path,
    run_uid: str,
    read: Callable[[Path], tuple[Mapping[str, Any], T]],
) -> T:
    path = _scratch_file(scratch, f"{ref.key}.in")
    try:
        store.get_file(keys.ptz(ref.key, ref.step), path)
        if (size := path.stat().st_size) != ref.size_bytes:
            raise CheckpointError(f"{ref.key}: {size} bytes; its manifest says {ref.size_bytes}")
        meta, found = read(path)
    except (KeyMissing, BadKey) as error:
        raise CheckpointError(f"{ref.key}: missing") from error
    finally:
        path.unlink(missing_ok=True)
    if (owner := meta.get("run_uid")) != run_uid:
        raise CheckpointError(f"{ref.key}: belongs to run {owner}")
    for name in ("epoch", "attempt", "step"):
        if meta.get(name) != getattr(ref, name):
            raise CheckpointError(
                f"{ref.key}: is of {name} {meta.get(name)}; its manifest says {getattr(ref, name)}"
            )
    return found
