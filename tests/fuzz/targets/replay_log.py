"""A log of another tool, as `forkcast replay` takes it."""

import json
import tempfile
from pathlib import Path

from forkcast_cli.replay import read, replay
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError

REFUSALS = (ManifestError,)
_FOLDER = tempfile.TemporaryDirectory()
_LOG = Path(_FOLDER.name) / "log.jsonl"


def seeds():
    """Rows of a trainer of one's own, and of one that counts passes over its data."""
    rows = [{"step": n, "loss": 3.0 - n / 50, "grad_norm": 1.0} for n in range(12)]
    yield b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    yield b"".join(json.dumps({**row, "epoch": row["step"] / 7}).encode() + b"\n" for row in rows)


def feed(data):
    """It is replayed, or refused by name."""
    _LOG.write_bytes(data)
    log = read(_LOG)
    assert replay(log, Uncertainty()).steps == len(log.records)
