"""A store that has lost a run's records stops the run; it never starts at step 0 without a word."""

from __future__ import annotations

import pytest

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import BRANCH, JOB
from forkcast_operator.kubernetes.loss import RecordsLostError, refuse_loss
from forkcast_wire import keys
from forkcast_wire.resources import (
    CheckpointInfo,
    CheckpointsStatus,
    RunProgress,
    TrainingRunStatus,
)

from .test_on_an_api_server import play

STATE = keys.state_manifest(keys.state(StateKind.CHECKPOINT, 0, 0, 50))
RING = keys.state_manifest(keys.state(StateKind.RING, 0, 0, 60))
PARTS = keys.ptz(keys.state(StateKind.CHECKPOINT, 0, 0, 50), 50)


def status(*, saved=None, step=None) -> TrainingRunStatus:
    latest = None
    if saved is not None:
        latest = CheckpointInfo(step=saved, epoch=0, key="k", sha256="0" * 64, size_bytes=1)
    progress = None if step is None else RunProgress(step=step, total_steps=1000)
    return TrainingRunStatus(checkpoints=CheckpointsStatus(latest=latest), progress=progress)


@pytest.mark.parametrize(
    ("before", "stored", "step"),
    [
        (status(saved=50, step=60), [], 50),
        (status(saved=50), [keys.RUN], 50),  # its states alone are gone
        (status(saved=50), [keys.RUN, PARTS], 50),  # a state without its manifest does not exist
        (status(step=60), [], 60),
        (status(saved=0, step=60), [], 60),
    ],
)
def test_progress_that_no_stored_state_has_is_lost(before, stored, step) -> None:
    with pytest.raises(RecordsLostError, match=f"had come to step {step}: restore") as caught:
        refuse_loss(before, stored)
    assert caught.value.reason == "RecordsLost"


@pytest.mark.parametrize(
    ("before", "stored"),
    [
        (status(), []),  # a new run
        (status(saved=0, step=0), []),  # nothing was trained yet
        (status(step=60), [keys.RUN]),  # it had saved nothing
        (status(saved=50), [keys.RUN, STATE]),
        (status(saved=50), [STATE]),  # its identity is written again
        (status(saved=50), [RING]),
        (status(saved=50), [keys.COMPLETE]),
        (status(saved=50), [f"{keys.LINEAGE_PREFIX}000001.json"]),
    ],
)
def test_what_a_start_can_go_on_from_is_no_loss(before, stored) -> None:
    refuse_loss(before, stored)


def take_away(store) -> dict[str, bytes]:
    """Everything in the store, which is empty then."""
    taken = {info.key: store.get(info.key)[0] for info in store.list("")}
    for key in taken:
        store.delete(key)
    return taken


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["goes on", "starts anew"])
def test_a_run_whose_records_are_gone_is_stalled_until_they_are_back(stage, operator) -> None:
    """Regression: it started at step 0, Running, and a new branch got the old Branch object."""

    async def scene():
        await stage.create()
        await stage.look()
        stage.save_state(StateKind.CHECKPOINT, 50)
        await stage.look()
        stage.start_operator()  # it writes the figures of the status at once
        await stage.look()
        assert (await stage.run())["status"]["checkpoints"]["latest"]["step"] == 50
        await stage.finish_job("gpt-trainer-0", "Complete")  # a drained node
        taken = take_away(stage.store)
        if operator == "starts anew":
            stage.start_operator()
        stage.link.hear(stage.trigger())
        for _ in range(2):
            await stage.look()
            assert await stage.condition("Stalled") == ("True", "RecordsLost")
            assert await stage.condition("Ready") == ("False", "RecordsLost")
            assert await stage.condition("CheckpointAvailable") == ("False", "RecordsLost")
        assert await stage.names(JOB) == ["gpt-trainer-0"]
        assert await stage.names(BRANCH) == []
        assert list(stage.store.list("")) == []  # no identity of a run that has no records
        assert "RecordsLost" in await stage.events()
        for key, data in taken.items():
            stage.store.put(key, data)
        await stage.look()
        assert await stage.condition("Stalled") is None
        assert "gpt-trainer-1" in await stage.names(JOB)

    play(stage, scene)


@pytest.mark.slow
def test_a_run_that_trains_on_ends_the_loss_with_its_next_checkpoint(stage) -> None:
    async def scene():
        await stage.create()
        await stage.look()
        stage.save_state(StateKind.CHECKPOINT, 50)
        stage.start_operator()
        await stage.look()
        take_away(stage.store)
        await stage.look()
        assert await stage.condition("Stalled") == ("True", "RecordsLost")
        assert await stage.names(JOB) == ["gpt-trainer-0"]
        stage.save_state(StateKind.CHECKPOINT, 100)
        for _ in range(2):  # what is missing shows in a list, and is written in the next pass
            await stage.look()
        assert await stage.condition("Stalled") is None
        assert stage.store.head(keys.RUN) is not None

    play(stage, scene)


@pytest.mark.slow
def test_a_finished_run_whose_bucket_was_emptied_stays_finished(stage) -> None:
    async def scene():
        await stage.create()
        await stage.look()
        stage.save_state(StateKind.CHECKPOINT, 1000)
        stage.complete()
        await stage.finish_job("gpt-trainer-0", "Complete")
        await stage.look()
        stage.start_operator()
        await stage.look()
        take_away(stage.store)
        stage.start_operator()
        await stage.look()
        assert await stage.condition("Complete") == ("True", "AllStepsDone")
        assert await stage.condition("Stalled") is None
        assert await stage.condition("CheckpointAvailable") == ("False", "RecordsLost")
        assert await stage.names(JOB) == ["gpt-trainer-0"]
        await stage.set(training={"totalSteps": 3000})
        await stage.look()
        assert await stage.condition("Stalled") == ("True", "RecordsLost")
        assert await stage.names(JOB) == ["gpt-trainer-0"]

    play(stage, scene)
