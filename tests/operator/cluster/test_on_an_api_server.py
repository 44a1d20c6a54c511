"""Runs on a real API server: from the object to its end, with hands for pods."""

from __future__ import annotations

import asyncio
import json

import pytest

from forkcast.admission import Refusal
from forkcast.records import StateKind
from forkcast_operator import clock
from forkcast_operator.kubernetes import trainers
from forkcast_operator.kubernetes.cluster import (
    BRANCH,
    CONFIG_MAP,
    EVENT,
    JOB,
    POD,
    RUN,
    ClusterError,
)
from forkcast_wire import catalogue
from forkcast_wire.documents import lineage_head
from forkcast_wire.resources import LABEL_RUN

pytestmark = pytest.mark.slow
BRANCH_NAME = "gpt-e0-t100"


def play(stage, scene) -> None:
    async def main():
        await stage.connect()
        try:
            stage.start_operator()
            await scene()
        finally:
            await stage.cluster.close()

    asyncio.run(main())


async def open_branch(stage, **spec):
    """A run that trains and has a branch open."""
    await stage.create(**spec)
    await stage.look()
    for step in (25, 50, 75, 98, 100):
        stage.save_state(StateKind.RING, step)
    stage.link.hear(stage.trigger())
    await stage.look()


async def to_the_end_of_the_branch(stage, **hands):
    for _ in range(40):
        await stage.roll_out(**hands)
        stage.adopt()
        await stage.look()
        branch = await stage.cluster.get(BRANCH, stage.namespace, BRANCH_NAME)
        if branch is not None and conditions(branch).get("Finished") == "True":
            return branch
    raise AssertionError("the branch has not ended")


def conditions(body):
    return {one["type"]: one["status"] for one in body.get("status", {}).get("conditions", [])}


def test_a_run_from_its_object_to_its_end(stage) -> None:
    async def scene():
        await open_branch(stage)
        jobs = await stage.names(JOB)
        assert len(jobs) == 3  # of the three entrants two may run at once
        assert f"{BRANCH_NAME}-control-r10" in jobs
        assert await stage.condition("Ready") == ("False", "Starting")  # no pod runs yet
        assert await stage.condition("Branching") == ("True", "BranchOpen")
        await stage.until(stage.run_pods)
        await stage.look()
        assert await stage.condition("Ready") == ("True", "Branching")
        branch = await to_the_end_of_the_branch(stage)
        seen = conditions(branch)
        assert [seen[k] for k in ("Ready", "Drafted", "Verified", "Accepted", "Collapsed")] == [
            "True"
        ] * 5
        assert branch["status"]["decision"]["outcome"] == "Accepted"
        assert lineage_head(stage.store).epoch == 1
        assert catalogue.read(stage.store).pins == {}
        assert "collapse/1" in stage.monitor.directives
        assert not any(d.startswith("hold") for d in stage.monitor.directives)
        stage.complete()
        await stage.finish_job("gpt-trainer-0", "Complete")
        await stage.look()
        run = await stage.run()
        seen = conditions(run)
        assert [seen[k] for k in ("Ready", "Complete", "Finished")] == ["True"] * 3
        assert seen["Failed"] == seen["Branching"] == seen["Suspended"] == "False"
        assert run["status"]["branches"]["accepted"] == 1
        assert run["status"]["lineage"]["epoch"] == 1
        assert run["status"]["observedGeneration"] == run["metadata"]["generation"]
        assert {"BranchTriggered", "Drafted", "Decided", "Collapsed", "Completed"} <= set(
            await stage.events()
        )
        jobs = await stage.cluster.list(JOB, stage.namespace, "")
        assert all(conditions(job).get("Complete") == "True" for job in jobs)

    play(stage, scene)


def test_ready_goes_with_the_pods_whatever_else_is_open(stage) -> None:
    async def scene():
        await open_branch(stage)
        await stage.until(stage.run_pods)
        await stage.look()
        assert await stage.condition("Ready") == ("True", "Branching")
        for pod in await stage.cluster.list(
            POD, stage.namespace, "app.kubernetes.io/component=trainer"
        ):
            await stage.cluster.delete(POD, stage.namespace, pod["metadata"]["name"], grace=0)
        await stage.look()  # another one is made, and nothing runs it
        assert await stage.condition("Ready") == ("False", "Starting")
        assert await stage.condition("Branching") == ("True", "BranchOpen")

    play(stage, scene)


def test_a_finished_run_that_is_wanted_longer_trains_again_and_ends_again(stage) -> None:
    """Regression: totalSteps of a finished run was raised, the patch taken, and nothing started."""

    async def scene():
        await stage.create()
        await stage.look()
        stage.complete()
        await stage.finish_job("gpt-trainer-0", "Complete")
        await stage.look()
        assert await stage.condition("Complete") == ("True", "AllStepsDone")
        await stage.set(training={"totalSteps": 3000})
        await stage.look()
        assert "gpt-trainer-1" in await stage.names(JOB)
        await stage.look()
        assert await stage.condition("Complete") == ("False", "StepsLeft")
        (settings,) = await stage.cluster.list(CONFIG_MAP, stage.namespace, f"{LABEL_RUN}=gpt")
        resolved = json.loads(settings["data"]["manifest.json"])["spec"]
        assert resolved["training"]["totalSteps"] == 3000
        assert resolved["training"]["scheduleSteps"] == 1000
        stage.link.hear(stage.trigger(step=1200))
        await stage.look()
        assert "gpt-e0-t1200" in await stage.names(BRANCH)
        stage.complete(3000)
        await stage.finish_job("gpt-trainer-1", "Complete")
        await stage.look()
        assert await stage.condition("Complete") == ("True", "AllStepsDone")
        assert (await stage.run())["status"]["progress"]["step"] == 3000

    play(stage, scene)


def test_rollouts_without_a_pod_are_said_and_their_queue_stops_the_clock(
    stage, monkeypatch
) -> None:
    async def branch():
        return await stage.cluster.get(BRANCH, stage.namespace, BRANCH_NAME)

    async def admit():
        for name in await stage.names(JOB):
            await stage.cluster.merge(JOB, stage.namespace, name, {"spec": {"suspend": False}})

    async def scene():
        budget = {"deadlineSeconds": 1}
        given = {"candidates": 16, "topK": 2, "rungs": [10], "confirm": {"steps": 0}}
        await open_branch(
            stage,
            scheduling={"rolloutQueueName": "spare"},
            branching={**given, "budget": budget},
        )
        now = clock.now()  # past its deadline, if that counted from the opening
        monkeypatch.setattr(clock, "now", lambda: now + 2)
        await stage.look()
        seen = await branch()
        ready = next(c for c in seen["status"]["conditions"] if c["type"] == "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "NotAdmitted")
        assert "queue spare" in ready["message"]
        assert {r["state"] for r in seen["status"]["rollouts"]} == {"Pending"}
        assert "deadlineTime" not in seen["status"]
        assert await stage.condition("Branching") == ("True", "NotAdmitted")
        assert conditions(seen)["Finished"] == "False"
        await admit()
        await stage.look()
        assert "deadlineTime" in (await branch())["status"]
        monkeypatch.setattr(clock, "now", lambda: now + 4)

        async def ended():
            body = await branch()
            return body if conditions(body)["Finished"] == "True" else None

        assert (await stage.until(ended))["status"]["decision"]["reason"] == "DeadlineExceeded"

    play(stage, scene)


def test_the_schedules_length_changes_only_while_the_run_is_suspended(stage) -> None:
    async def scene():
        await stage.create()
        with pytest.raises(ClusterError, match="only while the run is suspended"):
            await stage.set(training={"scheduleSteps": 500})
        await stage.set(suspend=True)
        await stage.set(training={"scheduleSteps": 500}, suspend=False)
        assert (await stage.run())["spec"]["training"]["scheduleSteps"] == 500
        with pytest.raises(
            ClusterError, match="is the length of Cosine, Linear, WSD; leave it out"
        ):
            await stage.create(
                "other",
                optimizer={"schedule": {"type": "Constant"}},
                training={"totalSteps": 9, "scheduleSteps": 5},
            )

    play(stage, scene)


def test_a_rollout_that_fails_fails_its_candidate_only(stage) -> None:
    async def scene():
        await open_branch(
            stage, branching={"candidates": 16, "topK": 2, "maxConcurrentRollouts": 3}
        )
        names = [n for n in await stage.names(JOB) if "-c0" in n]
        loser = names[0].removeprefix(f"{BRANCH_NAME}-").split("-")[0]
        branch = await to_the_end_of_the_branch(stage, fail={loser})
        states = {r["name"]: r["state"] for r in branch["status"]["rollouts"]}
        assert states[loser] == "Failed"
        assert branch["status"]["decision"]["outcome"] == "Accepted"

    play(stage, scene)


def test_a_rollout_that_waits_for_the_next_rung_gives_its_place_to_the_control(stage) -> None:
    """Regression: measured rollouts held their requests for five minutes, the control was Pending."""

    async def find_no_room(candidate):
        marks = f"forkcast.dev/candidate={candidate}"
        pods = await stage.cluster.list(POD, stage.namespace, marks)
        why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        status = {
            "conditions": [{**why, "message": "0/1 nodes are available: 1 Insufficient cpu."}]
        }
        for pod in pods:
            name = pod["metadata"]["name"]
            await stage.cluster.merge(POD, stage.namespace, name, {"status": status}, status=True)
        return pods

    async def rollouts():
        return [name for name in await stage.names(JOB) if name.startswith(BRANCH_NAME)]

    async def scene():
        await open_branch(
            stage,
            branching={"candidates": 16, "topK": 2, "rungs": [10, 25], "maxConcurrentRollouts": 3},
        )
        before = await rollouts()
        await stage.roll_out(waits=["control"])
        await stage.look()
        assert await rollouts() == before  # there is room: they wait for the next rung
        await stage.until(lambda: find_no_room("control"))

        async def alone():
            return await rollouts() == [f"{BRANCH_NAME}-control-r10"]

        await stage.until(alone)
        branch = await to_the_end_of_the_branch(stage)
        assert branch["status"]["decision"]["outcome"] == "Accepted"

    play(stage, scene)


def test_suspended_in_a_branch_nothing_runs_and_resumed_it_goes_on(stage) -> None:
    async def scene():
        await open_branch(stage)
        await stage.set(suspend=True)
        for _ in range(6):
            await stage.look()
            if await stage.names(JOB) == []:
                break
        assert await stage.names(JOB) == []
        await stage.look()
        assert await stage.condition("Suspended") == ("True", "SuspendedBySpec")
        assert await stage.condition("Ready") == ("False", "Suspended")
        await stage.set(suspend=False)
        await stage.look()
        assert "gpt-trainer-0" in await stage.names(JOB)
        branch = await to_the_end_of_the_branch(stage)
        assert conditions(branch)["Complete"] == "True"

    play(stage, scene)


@pytest.mark.parametrize("keep", ["Retain", "Delete"])
def test_deleted_in_a_branch_nothing_is_left(stage, keep) -> None:
    async def scene():
        await open_branch(stage, lifecycle={"onDelete": keep})
        assert catalogue.read(stage.store).pins
        await stage.cluster.delete(RUN, stage.namespace, "gpt")
        await stage.until_gone()
        assert await stage.names(JOB) == await stage.names(BRANCH) == await stage.names(POD) == []
        assert set(stage.monitor.forgotten) == {stage.uid}  # again where the pass came again
        if keep == "Delete":
            assert list(stage.store.list("")) == []
        else:
            assert catalogue.read(stage.store).pins == {}
        await stage.look()  # it is gone: nothing to do

    play(stage, scene)


def test_a_trainer_that_fails_starts_again_and_in_the_end_the_run_fails(stage) -> None:
    async def scene():
        await stage.create(lifecycle={"maxRestarts": 1, "restartBackoffSeconds": 1})
        await stage.look()
        await stage.finish_job("gpt-trainer-0", "Failed", "BackoffLimitExceeded")

        async def again():
            return "gpt-trainer-1" in await stage.names(JOB)

        await stage.until(again)
        await stage.finish_job("gpt-trainer-1", "Failed", "BackoffLimitExceeded")
        await stage.look()
        assert await stage.condition("Failed") == ("True", "RestartsExceeded")
        assert await stage.condition("Finished") == ("True", "Failed")
        await stage.look()
        assert [n for n in await stage.names(JOB) if n > "gpt-trainer-1"] == []

    play(stage, scene)


def test_the_reason_that_a_trainer_gives_for_its_end_is_the_conditions(stage) -> None:
    said = "ended: Hung: rank 0 at step 7 (step) showed no progress for 61 s"

    async def hung():
        pods = await stage.cluster.list(POD, stage.namespace, "")
        for pod in pods:
            ended = {"exitCode": 1, "message": f"a stack\n{said}\n", "reason": "Error"}
            one = {"name": "trainer", "image": "t", "imageID": "", "ready": False}
            state = {**one, "restartCount": 0, "state": {"terminated": ended}}
            status = {"phase": "Failed", "containerStatuses": [state]}
            name = pod["metadata"]["name"]
            await stage.cluster.merge(POD, stage.namespace, name, {"status": status}, status=True)
        return pods

    async def restarting():
        return await stage.condition("Ready") == ("False", "Hung")

    async def failed():
        return await stage.condition("Failed") == ("True", "Hung")

    async def scene():
        await stage.create(lifecycle={"maxRestarts": 1, "restartBackoffSeconds": 3600})
        await stage.look()
        await stage.until(hung)
        await stage.until(restarting)
        assert "rank 0 at step 7" in (await stage.run())["status"]["lastFailure"]["message"]
        await stage.set(lifecycle={"maxRestarts": 0})
        await stage.until(failed)

    play(stage, scene)


def test_an_image_that_cannot_be_pulled_is_replaced_by_the_edited_one(stage) -> None:
    """Regression: the edit was taken, and the workload kept the image that does not exist."""

    async def waits():
        pods = await stage.cluster.list(POD, stage.namespace, "")
        for pod in pods:
            held = {"reason": "ImagePullBackOff", "message": "no such image"}
            one = {"name": "trainer", "image": "t", "imageID": "", "ready": False}
            status = {"containerStatuses": [{**one, "restartCount": 0, "state": {"waiting": held}}]}
            name = pod["metadata"]["name"]
            await stage.cluster.merge(POD, stage.namespace, name, {"status": status}, status=True)
        return pods

    async def image():
        jobs = await stage.cluster.list(JOB, stage.namespace, "")
        images = [j["spec"]["template"]["spec"]["containers"][0]["image"] for j in jobs]
        return images == ["right:1"]

    async def scene():
        await stage.create(image={"trainer": "wrong:1"})
        await stage.look()
        await stage.until(waits)
        await stage.set(image={"trainer": "right:1"})
        await stage.until(image)
        assert (await stage.run())["status"]["trainer"]["restarts"] == 0

    play(stage, scene)


def test_triggers_that_open_nothing_are_one_event_that_counts(stage) -> None:
    async def scene():
        await open_branch(stage)
        for step in (110, 120, 130):
            stage.link.hear(stage.trigger(step))
            await stage.look()
        told = await stage.cluster.list(EVENT, stage.namespace, "")
        said = [(e["message"], e["count"]) for e in told if e["reason"] == "TriggerSuppressed"]
        assert said == [(f"triggers open no branch: {Refusal.BRANCH_ACTIVE.words}", 3)]

    play(stage, scene)


async def fail_for_good(stage, **spec):
    """A run whose trainer ended in a way that no start of it is of use."""
    await stage.create(**spec)
    await stage.look()
    await stage.finish_job("gpt-trainer-0", "Failed", "PodFailurePolicy")
    await stage.look()
    assert await stage.condition("Failed") == ("True", "Unusable")
    await stage.look()
    assert "gpt-trainer-1" not in await stage.names(JOB)


@pytest.mark.parametrize("remedy", ["suspend", "maxRestarts", "annotation"])
def test_a_failed_run_goes_on_once_its_cause_is_mended(stage, remedy) -> None:
    """Regression: nothing that a user could do made a failed run go on."""

    async def ask(value):
        match remedy:
            case "suspend":
                await stage.set(suspend=True)
                await stage.look()
                assert "gpt-trainer-1" not in await stage.names(JOB)
                await stage.set(suspend=False)
            case "maxRestarts":
                await stage.set(lifecycle={"maxRestarts": 10 + value})
            case "annotation":
                await stage.annotate(retry=str(value))
        await stage.look()

    async def scene():
        await fail_for_good(stage)
        await ask(1)
        assert "gpt-trainer-1" in await stage.names(JOB)
        await stage.look()
        assert await stage.condition("Failed") == ("False", "NotFailed")
        assert await stage.condition("Finished") == ("False", "NotEnded")
        assert (await stage.run())["status"]["trainer"]["restarts"] == 0
        await stage.finish_job("gpt-trainer-1", "Failed", "PodFailurePolicy")
        await stage.look()
        await stage.look()
        assert await stage.condition("Failed") == ("True", "Unusable")  # asked once, tried once
        assert "gpt-trainer-2" not in await stage.names(JOB)

    play(stage, scene)


def test_what_the_api_server_takes_and_cannot_be_carried_out_is_said(stage) -> None:
    async def scene():
        await stage.create(storage={"endpoint": "https://other", "bucket": "runs"})
        await stage.look()
        assert await stage.condition("Stalled") == ("True", "StoreUnknown")
        assert await stage.condition("Ready") == ("False", "StoreUnknown")
        assert await stage.names(JOB) == []
        assert "StoreUnknown" in await stage.events()

    play(stage, scene)


def test_rollouts_that_the_api_server_refuses_are_said_and_the_run_goes_on(stage) -> None:
    async def scene():
        wrong = {"requests": {"cpu": 2}, "limits": {"cpu": 1}}
        await open_branch(stage, resources={"rollout": wrong})
        assert await stage.names(JOB) == ["gpt-trainer-0"]
        assert await stage.condition("Stalled") == ("True", "RolloutRefused")
        assert await stage.condition("Branching") == ("True", "RolloutRefused")
        assert "RolloutRefused" in await stage.events()
        assert BRANCH_NAME in await stage.names(BRANCH)

    play(stage, scene)


def test_two_runs_do_not_share_a_prefix(stage) -> None:
    async def scene():
        await stage.create()
        await stage.look()
        first = await stage.run()
        await stage.create("other")
        await stage.look("other")
        assert await stage.condition("Stalled", "other") == ("True", "PrefixInUse")
        assert first["metadata"]["name"] == "gpt"

    play(stage, scene)


def test_an_idle_run_costs_no_writes(stage) -> None:
    async def scene():
        await stage.create(suspend=True)
        await stage.look()
        await stage.look()
        before = (await stage.run())["metadata"]["resourceVersion"]
        for _ in range(5):
            await stage.look()
        assert (await stage.run())["metadata"]["resourceVersion"] == before
        assert await stage.names(CONFIG_MAP) != []

    play(stage, scene)


def test_settings_that_somebody_changes_or_deletes_come_back(stage, monkeypatch) -> None:
    monkeypatch.setattr(trainers, "_DRIFT_SECONDS", 0.0)

    async def scene():
        await stage.create()
        await stage.look()

        async def settings():
            return await stage.cluster.get(CONFIG_MAP, stage.namespace, "gpt-run")

        before = (await settings())["data"]
        await stage.cluster.merge(
            CONFIG_MAP, stage.namespace, "gpt-run", {"data": {"manifest.json": "{}"}}
        )
        await stage.look()
        assert (await settings())["data"] == before
        await stage.cluster.delete(CONFIG_MAP, stage.namespace, "gpt-run")
        await stage.look()
        assert (await settings())["data"] == before
        version = (await settings())["metadata"]["resourceVersion"]
        await stage.look()
        assert (await settings())["metadata"]["resourceVersion"] == version

    play(stage, scene)
