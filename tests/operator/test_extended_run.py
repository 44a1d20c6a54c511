"""A finished run whose totalSteps is raised opens branches as before."""

import pytest

from forkcast_operator.intake import Intake, Received
from forkcast_wire.completion import record
from forkcast_wire.documents import Complete
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import FolderStore
from tests import make


def spec(total):
    return TrainingRunSpec.model_validate(
        {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": total},
            "branching": {"mode": "Enforce"},
        }
    )


def trigger(step):
    return make.trigger(step=step, onset_step=step)


@pytest.fixture
def store(tmp_path):
    found = FolderStore(tmp_path)
    record(found, Complete(epoch=0, step=1000, tokens=1, validation_loss=2.0, seconds=1.0))
    return found


def test_a_trigger_opens_a_branch_once_the_run_is_wanted_longer(store):
    intake = Intake("run", store, hold_main=False)
    assert intake.receive(spec(1000), [trigger(700)]) == [(Received.SUPPRESSED, "RunFinished")]
    assert intake.receive(spec(3000), [trigger(1200)]) == [(Received.OPENED, "run-e0-t1200")]
