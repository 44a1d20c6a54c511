"""The history of statistics: Parquet chunks and the open tail."""

import json
import shutil
import tempfile
from pathlib import Path

from google.protobuf.message import DecodeError

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import (
    HistoryError,
    last_steps,
    read_history,
    row_to_stats,
    stats_row,
    tail_of,
    write_chunk,
)
from forkcast_wire.tail import Row, encoded, framed
from tests.make import step_stats

REFUSALS = (DecodeError, HistoryError)
_FOLDER = Path(tempfile.mkdtemp())


def row(step):
    """One step's row."""
    stats = step_stats(
        step,
        loss=2.5,
        tokens=100 * step,
        attention_entropy=(0.5, 0.25),
        group_grad_norms={"mlp": 1.0},
    )
    told = {"tier": 2, "event": "The loss rose.", "onset_step": step}
    return stats_row(stats) | {"index": 0.1, "z": 0.2, "u_volatility": 0.3, **told}


def seeds():
    """`c` and a chunk; `t` and a tail of earlier versions; `f` and a tail; `p` and what is in a frame."""
    path = write_chunk([row(step) for step in range(5)], _FOLDER)
    yield b"c" + path.read_bytes()
    path.unlink()
    yield b"t" + "\n".join(json.dumps(row(step)) for step in range(3)).encode()
    told = {"tier": 2, "event": "The loss rose.", "onset_step": 1}
    rows = [Row(stats_to_wire(row_to_stats(row(step))), **told) for step in range(1, 4)]
    frame = encoded(rows, ["a"])
    yield b"f" + frame
    yield b"p" + frame[12:]


def feed(data):
    """Rows that come back are whole."""
    kind, content = data[:1], data[1:]
    for path in _FOLDER.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tail_of(_FOLDER).unlink(missing_ok=True)
    if kind == b"p":
        content = framed(pb.TailFrame.FromString(content))
    paths = {b"t": _FOLDER / "tail.jsonl", b"f": tail_of(_FOLDER), b"p": tail_of(_FOLDER)}
    paths.get(kind, _FOLDER / "e0-a0-000000000000.parquet").write_bytes(content)
    for one in read_history(_FOLDER):
        row_to_stats(one)
    last_steps(_FOLDER)
