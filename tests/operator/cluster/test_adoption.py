"""A new run takes over the records of one that has failed, on a real API server and S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import CONFIG_MAP, JOB, RUN
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run, store_place
from forkcast_wire import keys
from forkcast_wire.documents import RunInfo
from forkcast_wire.resources import LABEL_RUN
from forkcast_wire.store import open_store, read_document

from .test_on_an_api_server import fail_for_good, play

pytestmark = pytest.mark.slow


def _open(storage):
    return open_store(storage, Path("/nowhere"))


@pytest.fixture
def config(gateway):
    gateway.make_bucket("runs")
    store = {"endpoint": gateway.endpoint, "bucket": "runs"}
    return OperatorConfig.model_validate(
        {
            "monitor": {"target": "monitor.system.svc:50051", "insecureDev": True},
            "trainer": {"image": "forkcast/trainer:1"},
            "stores": [{**store, "credentialsDir": str(gateway.credentials)}],
        }
    )


@pytest.fixture
def stage(stage, config):
    """Its operator opens the real store."""
    start = stage.start_operator
    stage.start_operator = lambda: start(config=config, open_store=_open)
    return stage


async def failed(stage, config) -> Run:
    """A run that has failed after its checkpoint of step 50; `stage.store` is its place."""
    await fail_for_good(stage)
    run = Run.of(await stage.run())
    stage.store = _open(store_place(run, run.parsed(), config).operator)
    stage.save_state(StateKind.CHECKPOINT, 50)
    return run


async def identity_of_pods(stage, name) -> str:
    (settings,) = await stage.cluster.list(CONFIG_MAP, stage.namespace, f"{LABEL_RUN}={name}")
    return json.loads(settings["data"]["run.json"])["uid"]


@pytest.mark.parametrize("by", ["name", "uid"])
@pytest.mark.parametrize("former", ["stays", "deleted"])
def test_a_new_run_goes_on_from_the_states_of_a_failed_one(stage, config, by, former) -> None:
    """Regression: a run with the same prefix was refused, and nothing else could reach the states."""

    async def scene():
        run = await failed(stage, config)
        if former == "deleted":
            await stage.cluster.delete(RUN, stage.namespace, "gpt")
            await stage.until_gone()
        await stage.create("next", storage={"adoptFrom": getattr(run, by)})
        await stage.look("next")
        assert await stage.names(JOB) != []
        assert "next-trainer-0" in await stage.names(JOB)
        assert await identity_of_pods(stage, "next") == run.uid  # its states are the pods' own
        await stage.look("next")
        status = (await stage.run("next"))["status"]
        assert status["checkpoints"]["latest"]["step"] == 50
        assert run.uid in stage.monitor.runs  # under which its statistics are
        info = read_document(stage.store, RunInfo, keys.RUN)
        assert (info.uid, info.name, info.held_by) == (run.uid, "gpt", "next")
        stage.start_operator()  # another one remembers nothing
        await stage.look("next")
        assert await stage.condition("Stalled", "next") is None

    play(stage, scene)


def test_the_former_run_cannot_go_on_nor_take_the_records_with_it(stage, config) -> None:
    async def scene():
        await failed(stage, config)
        await stage.set(lifecycle={"onDelete": "Delete"}, suspend=True)
        await stage.look()
        await stage.create("next", storage={"adoptFrom": "gpt"})
        await stage.look("next")
        await stage.set(suspend=False)
        await stage.look()
        assert await stage.condition("Stalled") == ("True", "RecordsAdopted")
        assert "gpt-trainer-1" not in await stage.names(JOB)
        before = {info.key for info in stage.store.list("")}
        await stage.cluster.delete(RUN, stage.namespace, "gpt")
        await stage.until_gone()
        assert {info.key for info in stage.store.list("")} == before
        assert stage.monitor.forgotten == []

    play(stage, scene)


@pytest.mark.parametrize(
    ("given", "reason"), [("gpt", "FormerRunActive"), ("nobody", "NothingToAdopt")]
)
def test_records_in_use_or_nowhere_are_not_adopted(stage, given, reason) -> None:
    async def scene():
        await stage.create()
        await stage.look()
        await stage.create("next", storage={"adoptFrom": given})
        await stage.look("next")
        assert await stage.condition("Stalled", "next") == ("True", reason)
        assert "next-trainer-0" not in await stage.names(JOB)

    play(stage, scene)
