"""States of step 0, 50, 100, 200, 400 ... are taken, and stay for the life of the run."""

import threading

import torch

from forkcast.records import StateKind
from forkcast_trainer.checkpoint import Snapshot
from forkcast_trainer.saver import Saver
from forkcast_trainer.train import TrainingRun
from forkcast_wire.documents import saved_states
from forkcast_wire.manifest import Checkpoint
from forkcast_wire.store import FolderStore


def test_they_are_saved_whatever_the_ring_and_never_pruned(tmp_path):
    rules = Checkpoint(ring_keep=2, log_spaced_from=20)
    store = FolderStore(tmp_path)
    saver = Saver(store, tmp_path, rules)
    for step in range(0, 400, 10):
        meta = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": step, "loss": 1.0}
        saver.save(Snapshot(meta, {"model.w": torch.zeros(4)}), StateKind.RING)
        assert saver.flush(60)
    assert saver.close(60)
    steps = {ref.step for ref in saved_states(store, StateKind.RING)}
    assert steps >= {0, 20, 40, 80, 160, 320, 380, 390}
    assert len(steps) < 15


def test_a_state_is_due_at_their_steps(run_in, tmp_path):
    run = run_in(tmp_path / "r", ring=1000, every=1000)
    training = TrainingRun(
        run.manifest.spec, run.folder, monitor="", attempt=0, stop=threading.Event()
    )
    boundary = training.boundary
    due = []
    for step in range(1, 500):
        boundary.due.clear()
        boundary.after(step)
        due += [step] * (StateKind.RING in boundary.due)
    assert due == [50, 100, 200, 400]
    assert training.saver.skipped == 0
    for step in (500, 1000, 2000):  # the states of 500 ... are never taken
        boundary.after(step)
    training.report.progress("running", force=True)
    training.report.close("stopped", 60.0)
    # of 1000 and 2000: one kind each was still due from before
    assert training.saver.skipped == 2
    assert run.progress()["saves_skipped"] == 2
