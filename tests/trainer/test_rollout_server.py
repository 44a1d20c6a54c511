"""The rollout server: what it starts again, and what it gives up."""

from pathlib import Path

import pytest
import torch

from forkcast.actions import Action
from forkcast.records import Trial, TrialStatus
from forkcast_trainer import rollout_server
from forkcast_trainer.rollout_server import RolloutServer
from forkcast_trainer.slots import Slots
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob, RolloutUntil, dump
from forkcast_wire.store import open_store, read_document
from tests.make import state_ref
from tests.waiting import until

NAME = ("e0-t100", "c000")


@pytest.fixture
def served(tmp_path, tiny, monkeypatch):
    """A server whose rollouts do as the test says; gives (run until a trial stands, store)."""
    spec = tiny().spec
    store = open_store(spec.storage, tmp_path)
    base = state_ref(90)
    job = RolloutJob(
        run_uid="u",
        trigger_id=NAME[0],
        candidate=NAME[1],
        action=Action(clipping="ZClip"),
        base=base,
        trigger_step=100,
        rungs=(5,),
        publish_from=5,
    )
    store.put(keys.rollout_job(*NAME), dump(job))
    store.put(keys.rollout_until(*NAME), dump(RolloutUntil(until=5)))
    server = RolloutServer(spec, store, tmp_path)

    def serve(behaviour):
        class Faked:
            def __init__(self, given, *_):
                self.job = given

            def run(self):
                behaviour(tmp_path, store, self.job)

        monkeypatch.setattr(rollout_server, "Rollout", Faked)

        def published():
            server.look()
            trial = read_document(store, Trial, keys.rollout_trial(*NAME, 5))
            return trial if not server.children else None

        return until(published, "a trial")

    return serve


def publish(store, job, status=TrialStatus.OK):
    trial = Trial(
        candidate=job.candidate,
        rung=5,
        step=105,
        status=status,
        validation_loss=1.0,
        mean_weights_loss=1.0,
        losses_from=90,
        losses=(),
        spike_steps=(),
        steps_run=0,
        seconds=0.0,
    )
    store.put(keys.rollout_trial(*NAME, 5), dump(trial), create=True)


def starts(folder: Path) -> int:
    """How often a child has come this far, this one included."""
    with (folder / "starts").open("a") as file:
        file.write("x")
    return len((folder / "starts").read_text())


def test_out_of_memory_is_no_failure_of_the_candidate(served, tmp_path):
    def behaviour(folder, store, job):
        if starts(folder) <= 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        publish(store, job)

    assert served(behaviour).status is TrialStatus.OK
    assert (tmp_path / "slots" / "narrow").exists()


def test_what_never_fits_is_given_up(served):
    def behaviour(folder, store, job):
        raise RuntimeError("CUDA error: out of memory")

    trial = served(behaviour)
    assert trial.status is TrialStatus.FAILED
    assert "memory" in trial.failure


def test_a_second_death_fails_the_candidate(served):
    def behaviour(folder, store, job):
        starts(folder)
        raise ValueError("broken")

    trial = served(behaviour)
    assert trial.status is TrialStatus.FAILED
    assert "died 2 times" in trial.failure


def test_narrowed_slots_admit_one_at_a_time(tmp_path):
    slots, other = Slots(tmp_path, 2), Slots(tmp_path, 2)
    slots.narrow()
    with slots.one():
        held = [path for path in other._paths if path.exists()]
        assert held == [tmp_path / "0"]
