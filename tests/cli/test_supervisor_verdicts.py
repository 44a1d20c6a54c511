"""What the supervisor makes of a trainer's end under torchrun, which exits with 1 for everything."""

import pytest

from forkcast_cli.supervisor import RunFailedError, Supervisor
from forkcast_wire.manifest import TrainingRunSpec

EARLIER = b"error: spec.old: of an earlier start; long mended\n"


@pytest.fixture
def died(tmp_path):
    (tmp_path / "logs").mkdir()

    def make(said, *, processes, code=1):
        spec = TrainingRunSpec.model_validate(
            {
                "data": {"train": {"uri": "python-stdlib:"}},
                "training": {"totalSteps": 10},
                "parallelism": {"processesPerNode": processes},
            }
        )
        (tmp_path / "logs" / "trainer.log").write_bytes(EARLIER + said)
        child = (one := Supervisor(spec, tmp_path)).children["trainer"]
        child.started, child.log_from = 100.0, len(EARLIER)
        one._died(child, code, 101.0)
        return child

    return make


def test_a_wrong_manifest_is_said_at_once_however_many_processes(died):
    said = b"error: spec.data.train: 3 tokens are fewer than one window; give more text\n"
    with pytest.raises(RunFailedError, match=r"spec\.data\.train"):
        died(said, processes=2)
    with pytest.raises(RunFailedError, match=r"spec\.data\.train"):
        died(said, processes=1, code=2)


def test_a_crash_is_started_again(died):
    child = died(b"Traceback (most recent call last):\nRuntimeError: a peer is gone\n", processes=2)
    assert child.not_before > 101.0
    assert died(b"error: said by a process that is not torchrun's\n", processes=1).deaths == 1
