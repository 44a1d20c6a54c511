"""Logs of other tools, given to `forkcast replay`."""

import pytest

from forkcast_cli.replay import read as read_log
from forkcast_cli.replay import replay
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError

from .harness import fuzz


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_any_log_is_replayed_or_refused(tmp_path, kind):
    path = tmp_path / f"log.{kind}"

    def read(data):
        path.write_bytes(data)
        replay(read_log(path), Uncertainty())

    fuzz(f"replay_{kind}", read, ManifestError)
