"""The checkpoint container."""

from forkcast_trainer.checkpoint import CheckpointError, read_container, verify_container

from .harness import fuzz


def test_any_container_is_read_or_refused(tmp_path):
    path = tmp_path / "x.ptz"

    def read(data):
        path.write_bytes(data)
        try:
            verify_container(path)
        finally:
            snapshot = read_container(path)
        assert snapshot.meta is not None

    fuzz("checkpoint", read, CheckpointError)
