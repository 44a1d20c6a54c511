"""A TrainingRun manifest, YAML, as a user writes it."""

import tempfile
from pathlib import Path

from forkcast_wire.manifest_file import ManifestError, load_manifest

REFUSALS = (ManifestError,)
_PATH = Path(tempfile.mkdtemp(), "m.yaml")
_EXAMPLES = Path(__file__).parents[3] / "examples"


def seeds():
    """The examples."""
    for path in sorted(_EXAMPLES.rglob("*.yaml")):
        yield path.read_bytes()


def feed(data):
    """It is a run, or one error says why not."""
    _PATH.write_bytes(data)
    run = load_manifest(_PATH)
    assert run.document()["kind"] == "TrainingRun"
