"""A store that accepts and never answers, with nine runs on it: the runs of another store go on as if
nothing was, and the nine go on training and are told of.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import BRANCH, EVENT, JOB, RUN
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run, store_place
from forkcast_wire.store.s3 import S3Store
from tests.silent_line import Line
from tests.versitygw import Versitygw

from .live import conditions
from .processes import get

pytestmark = pytest.mark.slow
SILENT = [f"s{number}" for number in range(9)]


@pytest.fixture
def line(live, tmp_path_factory):
    """A second store of the operator's, behind a line that can fall silent."""
    second = Versitygw(tmp_path_factory.mktemp("second"))
    second.start()
    second.make_bucket("runs")
    line = Line(urlsplit(second.endpoint).port)
    line.endpoint = f"http://127.0.0.1:{line.port}"
    store = {"endpoint": line.endpoint, "bucket": "runs", "credentialsDir": str(second.credentials)}
    live.config["stores"].append(store)
    yield line
    line.close()
    second.kill()


async def _status(live, name):
    return (await live.stage.run(name)).get("status", {})


async def _away(live, line, name):
    found = (await _status(live, name))["conditions"]
    ready = next(one for one in found if one["type"] == "Ready")
    return ready["status"] == "False" and line.endpoint in ready["message"]


def _save_ring(stage) -> None:
    for step in (25, 50, 75, 98, 100):
        stage.save_state(StateKind.RING, step)


async def _nine(live, line) -> None:
    """Runs on the second store, all with a trainer; the first of them has a branch open."""
    stage, storage = live.stage, {"endpoint": line.endpoint, "bucket": "runs"}
    made = {name: await stage.create(name, storage=storage) for name in SILENT}

    async def training():
        return len(await live.trainers()) == len(SILENT)

    await live.until(training)
    run = Run.of(made[SILENT[0]])
    config = OperatorConfig.model_validate(live.config)
    stage.store = S3Store(store_place(run, run.parsed(), config).operator)
    _save_ring(stage)
    live.monitor.fire(replace(stage.trigger(), run_uid=run.uid))

    async def branching():
        return conditions(await stage.run(SILENT[0])).get("Branching") == "True"

    await live.until(branching)


async def _meanwhile(live) -> None:
    """On the healthy store a run begins, and another one branches and adopts."""
    await live.stage.create("fresh")

    async def fresh():
        return "fresh-trainer-0" in await live.trainers()

    await live.until(fresh)
    live.stage.uid = (await live.stage.run())["metadata"]["uid"]
    _save_ring(live.stage)
    live.monitor.fire(live.stage.trigger())
    branch = await live.end_branch()
    assert branch["status"]["decision"]["outcome"] == "Accepted"


async def _edited(live, name, number) -> float:
    """An edit of a run, until the operator has seen it; seconds."""
    started = time.monotonic()
    made = await live.stage.set(name, lifecycle={"maxRestarts": 3 + number % 2})

    async def seen():
        return (await _status(live, name)).get("observedGeneration") == made["metadata"][
            "generation"
        ]

    await live.until(seen)
    return time.monotonic() - started


async def _measure(live, seconds) -> None:
    """How soon a healthy run is looked at; said, not judged: the machine may be busy."""
    took, end = [await _edited(live, "fresh", 0)], time.monotonic() + seconds
    while time.monotonic() < end:
        took.append(await _edited(live, "fresh", len(took)))
        await asyncio.sleep(1)
    took.sort()
    figures = [
        one
        for one in get(live.metrics, "/metrics")[1].splitlines()
        if "reconcile_seconds_bucket" in one or "store_errors_total" in one
    ]
    sys.stderr.write(
        f"{len(took)} edits of a healthy run, until seen: median {statistics.median(took):.3f} s,"
        f" p99 {took[int(len(took) * 0.99)]:.3f} s, most {took[-1]:.3f} s\n"
        + "\n".join(figures)
        + "\n"
    )


async def _told_of(live, line) -> None:
    """The nine are said to be without their store, once; what the monitor knows goes on."""
    for name in SILENT:
        await live.until(lambda name=name: _away(live, line, name))
        assert conditions(await live.stage.run(name)).get("Stalled") is None

        async def stepped(name=name):
            return (await _status(live, name))["progress"]["step"] == 700

        await live.until(stepped)
    assert conditions(await live.stage.run(SILENT[0]))["Branching"] == "True"
    events = await live.stage.cluster.list(EVENT, live.server.namespace, "")
    told = [e["involvedObject"]["name"] for e in events if e["reason"] == "StoreUnavailable"]
    assert sorted(told) == SILENT
    errors = next(
        one
        for one in get(live.metrics, "/metrics")[1].splitlines()
        if one.startswith("forkcast_operator_store_errors_total")
    )
    assert float(errors.split()[1]) >= len(SILENT)


async def _suspended(live, name) -> None:
    await live.stage.set(name, suspend=True)

    async def stopped():
        return f"{name}-trainer-0" not in await live.trainers()

    await live.until(stopped)


async def _back(live, line) -> None:
    async def answered():
        return not [name for name in SILENT if await _away(live, line, name)]

    await live.until(answered)
    namespace = live.server.namespace
    jobs = [one for one in await live.stage.names(JOB) if one.startswith("s0-e0-t100-")]
    assert len(jobs) == 2
    assert await live.stage.cluster.get(BRANCH, namespace, "s0-e0-t100") is not None
    await live.stage.cluster.delete(RUN, namespace, "s2")

    async def gone():
        return await live.stage.run("s2") is None

    await live.until(gone)


@pytest.mark.parametrize("seconds", [0, pytest.param(360, marks=pytest.mark.faults)])
def test_runs_of_another_store_go_on_while_nine_are_silent(live, line, seconds) -> None:
    async def scene():
        live.start_operator()
        await _nine(live, line)
        await live.train()
        before = live.lease()
        line.fall_silent()
        live.monitor.step = 700
        await _meanwhile(live)
        await _measure(live, seconds)
        await _told_of(live, line)
        await _suspended(live, "s1")
        after = live.lease()
        assert after["leaseTransitions"] == before["leaseTransitions"]
        assert after["renewTime"] > before["renewTime"]
        assert live.healthy()
        line.speak()
        await _back(live, line)

    live.play(scene)
    log = (live.folder / "a.log").read_text()
    assert log.count("store.outage_began") == log.count("store.outage_ended") == 1
