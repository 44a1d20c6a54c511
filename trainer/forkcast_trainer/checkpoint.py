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
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import zstandard
from torch import Tensor

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_wire import keys
from forkcast_wire.documents import StateManifest, dump, read_manifest
from forkcast_wire.store import AlreadyExists, KeyMissing

MAGIC = b"FCPTZ\x00\x00\x01"
FORMAT_VERSION = 1
_MAX_HEADER = 64 << 20
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


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def write_container(snapshot: Snapshot, path: Path, level: int) -> str:
    """Write the container; level 0 stores raw frames. Returns the sha256 of the file, hex."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False) if level else None
    table, offset = [], 0
    body = path.with_name(path.name + ".body")
    with body.open("wb") as file:
        for name, tensor in snapshot.tensors.items():
            raw = _raw(tensor)
            frame = compressor.compress(raw) if compressor else raw
            file.write(frame)
            table.append(
                {
                    "name": name,
                    "dtype": _NAMES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "codec": "zstd" if compressor else "raw",
                    "offset": offset,
                    "size": len(frame),
                    "raw_size": len(raw),
                    "sha256": hashlib.sha256(raw).hexdigest(),
                }
            )
            offset += len(frame)
    header = json.dumps({"meta": snapshot.meta, "tensors": table}, sort_keys=True).encode()
    digest = hashlib.sha256()
    with path.open("wb") as out, body.open("rb") as frames:
        for piece in (MAGIC, struct.pack("<Q", len(header)), header):
            out.write(piece)
            digest.update(piece)
        while chunk := frames.read(1 << 22):
            out.write(chunk)
            digest.update(chunk)
    body.unlink()
    return digest.hexdigest()


def read_container(path: Path, digest: str | None = None) -> Snapshot:
    """The snapshot that a container holds, every byte verified.

    Raises CheckpointError where the digest, a length, a dtype or a tensor's sha256 is wrong; the
    message names the part. Memory is bounded by the sizes the header declares, which are checked
    against the shapes first.
    """
    data = path.read_bytes()
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path.name}: digest differs from the manifest's")
    if data[:8] != MAGIC or len(data) < 16:
        raise CheckpointError(f"{path.name}: not a Forkcast checkpoint of format 1")
    (length,) = struct.unpack("<Q", data[8:16])
    if length > min(_MAX_HEADER, len(data) - 16):
        raise CheckpointError(f"{path.name}: header length {length} is impossible")
    try:
        header = json.loads(data[16 : 16 + length])
        entries, meta = header["tensors"], header["meta"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name}: header is damaged") from error
    start = 16 + length
    try:
        tensors = {str(entry["name"]): _tensor(entry, data, start, path.name) for entry in entries}
        used = sum(entry["size"] for entry in entries)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path.name}: tensor table is damaged") from error
    if start + used != len(data):
        raise CheckpointError(f"{path.name}: surplus or missing bytes")
    return Snapshot(meta, tensors)


def _tensor(entry: Mapping[str, Any], data: bytes, start: int, file: str) -> Tensor:
    name = entry["name"]
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{file}: {name}: unknown dtype {entry['dtype']}")
    shape = tuple(int(n) for n in entry["shape"])
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if entry["raw_size"] != expected or entry["offset"] < 0 or entry["size"] < 0:
        raise CheckpointError(f"{file}: {name}: sizes contradict the shape")
    frame = data[start + entry["offset"] : start + entry["offset"] + entry["size"]]
    try:
        raw = (
            zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected)
            if entry["codec"] == "zstd"
            else frame
        )
    except zstandard.ZstdError as error:
        raise CheckpointError(f"{file}: {name}: {error}") from error
    if len(raw) != expected or hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{file}: {name}: contents are damaged")
    if not expected:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)


def publish(
    store: Store, snapshot: Snapshot, folder: str, kind: StateKind, scratch: Path, level: int
) -> StateRef:
    """Write container and manifest under ``folder``, the manifest last; returns the reference.

    Publishing the same state again is success. Raises CheckpointError where another state stands
    under the folder already.
    """
    meta = snapshot.meta
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{folder.replace('/', '_')}.ptz"
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
        store.put_file(keys.ptz(folder, ref.step), path)
    finally:
        path.unlink(missing_ok=True)
    manifest = StateManifest(
        format_version=FORMAT_VERSION,
        run_uid=meta["run_uid"],
        state=ref,
        lossless=True,
        loss=meta.get("loss"),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    try:
        store.put(keys.state_manifest(folder), dump(manifest), create=True)
    except AlreadyExists:
        standing = read_manifest(store, folder)
        if standing is None or standing.state.digest != digest:
            raise CheckpointError(f"{folder}: another state stands there") from None
    return ref


def fetch(store: Store, ref: StateRef, scratch: Path, run_uid: str) -> Snapshot:
    """The verified state behind a reference.

    Raises CheckpointError where it is missing, damaged, or of another run.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    path = (
        scratch
        / f"{ref.key.replace('/', '_')}.{hashlib.sha256(str(id(ref)).encode()).hexdigest()[:8]}.in"
    )
    try:
        store.get_file(keys.ptz(ref.key, ref.step), path)
        snapshot = read_container(path, ref.digest)
    except KeyMissing as error:
        raise CheckpointError(f"{ref.key}: missing") from error
    finally:
        path.unlink(missing_ok=True)
    if snapshot.meta["run_uid"] != run_uid:
        raise CheckpointError(f"{ref.key}: belongs to run {snapshot.meta['run_uid']}")
    return snapshot
