"""The rollout server as a process, its store a bucket: what it remembers must not hold a rollout back."""

import json

from forkcast.actions import Action
from forkcast.records import StateKind, Trial, TrialStatus
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob, RolloutUntil, dump, saved_states
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.store import open_store, read_document
from tests.waiting import until

NAME = ("e0-t0", "c000")


def test_a_rollout_goes_on_when_more_is_asked_of_it(start_on_bucket, tmp_path):
    assert start_on_bucket("forkcast_trainer", "--claim-attempt").wait() == 0
    spec = TrainingRun.model_validate(json.loads((tmp_path / "manifest.json").read_text())).spec
    store = open_store(spec.storage, tmp_path)
    job = RolloutJob(
        run_uid="u",
        trigger_id=NAME[0],
        candidate=NAME[1],
        action=Action(),
        base=saved_states(store, StateKind.RING)[0],
        trigger_step=0,
        rungs=(1, 2, 3),
        publish_from=3,
    )

    def ask(rung):
        store.put(keys.rollout_until(*NAME), dump(RolloutUntil(until=rung)))

    def trial(rung):
        return read_document(store, Trial, keys.rollout_trial(*NAME, rung))

    store.put(keys.rollout_job(*NAME), dump(job))
    ask(1)
    start_on_bucket("forkcast_trainer.rollout_server")
    for rung in job.rungs:
        ask(rung)
        assert until(lambda r=rung: trial(r), f"rung {rung}").status is TrialStatus.OK
    assert "rollout.child_died" not in (tmp_path / "log").read_text()
