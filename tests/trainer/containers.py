"""Containers put together by hand, right or wrong, of both versions of the format."""

from __future__ import annotations

import hashlib
import json
import struct

from blake3 import blake3

HEAD = 64


def old(path, meta, table, frames=b""):
    """Format version 1; offsets in the table."""
    header = json.dumps({"meta": meta, "tensors": table}).encode()
    path.write_bytes(b"FCPTZ\0\0\1" + struct.pack("<Q", len(header)) + header + frames)


def signed(path, document, frames=b""):
    """Format version 2 whose index has the digest that its head says; what it says may be a lie."""
    index = json.dumps(document).encode()
    head = b"FCPTZ\0\0\2" + struct.pack("<QQ", HEAD + len(frames), len(index))
    path.write_bytes(head + hashlib.sha256(index).digest() + bytes(8) + frames + index)


def parts(path):
    """The document and the frames of a file of version 2, for `signed`."""
    data = path.read_bytes()
    place, length = struct.unpack("<QQ", data[8:24])
    return json.loads(data[place : place + length]), data[HEAD:place]


def frame(data, codec="raw", at=HEAD):
    """A row of the index that is right."""
    return [at, len(data), codec, blake3(data).hexdigest()]
