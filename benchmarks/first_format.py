"""What wrote containers of format version 1: beside it the one of version 2 is measured."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from forkcast_trainer.table import DTYPE_NAMES, Snapshot


def write(snapshot: Snapshot, path: Path, level: int) -> str:
    """Frames into a file of their own, then behind the header; level 0 stores raw frames. Returns the
    sha256 of the file, hex.
    """
    packer = zstandard.ZstdCompressor(level=level or 1, write_checksum=False)
    body, rows, offset = path.with_name(path.name + ".body"), [], 0
    with body.open("wb") as out:
        for name, tensor in snapshot.tensors.items():
            raw = _raw(tensor)
            frame = packer.compress(raw) if level else raw
            out.write(frame)
            rows.append(_row(name, tensor, "zstd" if level else "raw", len(frame), offset))
            offset += len(frame)
    header = json.dumps({"meta": snapshot.meta, "tensors": rows}, sort_keys=True).encode()
    digest = hashlib.sha256()
    with path.open("wb") as out, body.open("rb") as frames:
        for piece in (b"FCPTZ\0\0\1", struct.pack("<Q", len(header)), header):
            out.write(piece)
            digest.update(piece)
        while piece := frames.read(1 << 22):
            out.write(piece)
            digest.update(piece)
    body.unlink()
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _row(name: str, tensor: Tensor, codec: str, size: int, offset: int) -> dict[str, Any]:
    raw = _raw(tensor)
    return {
        "name": name,
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "codec": codec,
        "offset": offset,
        "size": size,
        "raw_size": raw.nbytes,
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
