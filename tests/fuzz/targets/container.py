"""A checkpoint's container: `cp_<step>.ptz`, of either version of the format."""

import tempfile
from pathlib import Path

import torch

from forkcast_trainer.checkpoint import (
    CheckpointError,
    Snapshot,
    read_container,
    verify_container,
    write_container,
)
from forkcast_trainer.table import Role

REFUSALS = (CheckpointError,)
_PATH = Path(tempfile.mkdtemp(), "x.ptz")
_OLD = Path(__file__).parents[2] / "data"
_MOST_ELEMENTS = 1 << 16


def seeds():
    """A small state, packed, raw and with moments in 8 bits, and the older files that the tests read."""
    tensors = {
        "a": torch.ones(3, 5),
        "b": torch.arange(4),
        "c": torch.tensor([True, False]),
        "d": torch.empty(0, 3),
    }
    meta = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7, "loss": 1.5}
    tensors["m"], tensors["v"] = torch.linspace(-1, 1, 300) ** 9, torch.linspace(0, 1, 300) ** 9
    roles = {"m": Role.FIRST_MOMENT, "v": Role.SECOND_MOMENT}
    for level, int8 in ((0, False), (1, False), (0, True), (1, True)):
        write_container(Snapshot(meta, tensors, roles), _PATH, level, int8=int8)
        yield _PATH.read_bytes()
    for path in sorted(_OLD.glob("state_v*/**/*.ptz")):
        yield path.read_bytes()


def feed(data):
    """As the trainer reads it: no tensor that its model does not have is unpacked."""
    _PATH.write_bytes(data)
    read_container(_PATH, admit=_small)
    verify_container(_PATH)


def _small(_meta, table):
    for name, row in table.items():
        size = 1
        for one in row.shape:
            size *= one
        if size > _MOST_ELEMENTS:
            raise CheckpointError(f"{name}: no model's")
