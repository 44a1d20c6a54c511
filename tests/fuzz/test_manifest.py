"""The run manifest that a user writes."""

from pathlib import Path

from forkcast_wire.manifest_file import ManifestError, read_manifest

from .harness import fuzz

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def test_any_manifest_is_read_or_refused(tmp_path):
    path = tmp_path / "run.yaml"

    def read(data):
        path.write_bytes(data)
        read_manifest(path)

    fuzz("run_manifest", read, ManifestError, more=[EXAMPLE.read_bytes()])
