"""A damaged record of one branch leaves the others, and the operator, at work."""

from forkcast_operator.intake import Intake, Received
from forkcast_wire import branches, keys
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import FolderStore
from tests.make import trigger

SPEC = TrainingRunSpec.model_validate(
    {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 10000},
        "branching": {"mode": "Enforce"},
    }
)


def test_a_branch_whose_record_is_damaged_is_left_out_and_the_next_one_opens(tmp_path):
    store = FolderStore(tmp_path)
    Intake("run", store, hold_main=False).receive(SPEC, [trigger(step=100)])
    store.put(keys.branch_file("e0-t100", "branch"), b"{")
    intake = Intake("run", store, hold_main=False)
    assert (intake.active(), intake.records()) == ([], [])
    told = intake.receive(SPEC, [trigger(step=100), trigger(step=7000)])
    assert told == [(Received.KNOWN, ""), (Received.OPENED, "run-e0-t7000")]
    assert [record.name for record, _ in intake.active()] == ["run-e0-t7000"]


def test_a_damaged_decision_is_no_history(tmp_path):
    store = FolderStore(tmp_path)
    store.put(keys.branch_file("e0-t100", "decision"), b"")
    assert list(branches.decisions(store)) == []
