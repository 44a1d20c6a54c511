"""A log of somebody else's training, as `forkcast replay` reads it."""

import json
import tempfile
from pathlib import Path

from forkcast_cli.replay import read, replay
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError

REFUSALS = (ManifestError,)
_PATH = Path(tempfile.mkdtemp(), "log.jsonl")


def seeds():
    """Rows as trainers write them: ours, Hugging Face's, with text for numbers, with a cut line."""
    ours = {"step": 1, "loss": 2.5, "grad_norm": 1.0}
    theirs = {"epoch": 0.0002, "grad_norm": 15.37, "learning_rate": 1e-06, "loss": 11.0, "step": 0}
    text = {"step": "3", "loss": "NaN", "grad_norm": "0.5", "rank": "0"}
    evaluation = {"epoch": 1.0, "eval_loss": 2.0, "step": 4}
    yield "\n".join(map(json.dumps, (ours, theirs, text, evaluation))).encode()
    yield json.dumps(ours).encode() + b'\n{"step": 2, "lo'
    yield json.dumps([ours, theirs]).encode()


def feed(data):
    """It is folded, or refused in one line."""
    _PATH.write_bytes(data)

    replay(read(_PATH), Uncertainty())
