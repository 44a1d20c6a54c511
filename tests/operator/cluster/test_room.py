"""Runs that compete for room, and pods that the cluster takes away, on a real API server."""

from __future__ import annotations

import pytest

from forkcast_operator.kubernetes.cluster import JOB, POD
from forkcast_wire.store import FolderStore

from .test_on_an_api_server import BRANCH_NAME, conditions, open_branch, play

pytestmark = pytest.mark.slow
GPU = "nvidia.com/gpu"
A_DEVICE = {"requests": {"cpu": "1"}, "limits": {GPU: "1"}}


async def pods_of(stage, **marks):
    labels = ",".join(f"{name.replace('_', '.')}={value}" for name, value in marks.items())
    return await stage.cluster.list(POD, stage.namespace, labels)


async def say(stage, pod, **status) -> None:
    """What the scheduler or a kubelet would say of a pod."""
    name = pod["metadata"]["name"]
    await stage.cluster.merge(POD, stage.namespace, name, {"status": status}, status=True)


def unschedulable(resource):
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    message = f"0/1 nodes are available: 1 Insufficient {resource}."
    return [{**why, "message": message}]


async def rollouts(stage):
    return [name for name in await stage.names(JOB) if name.startswith(BRANCH_NAME)]


@pytest.mark.parametrize(("lacking", "leave"), [(GPU, True), ("hugepages-2Mi", False)])
def test_rollouts_that_wait_for_the_next_rung_leave_if_another_run_waits_for_what_they_hold(
    stage, lacking, leave
) -> None:
    """Two runs, each with parked rollouts and no room for its control, waited for each other."""

    async def scene():
        elsewhere = FolderStore(stage.folder / "elsewhere")
        stage.start_operator(
            open_store=lambda place: elsewhere if "/other-" in place.prefix else stage.store
        )
        await stage.create("other", resources={"perNode": A_DEVICE})
        await stage.look("other")
        await open_branch(
            stage,
            resources={"perNode": A_DEVICE},
            branching={"candidates": 16, "topK": 2, "rungs": [10, 25], "maxConcurrentRollouts": 3},
        )
        before = await rollouts(stage)
        assert len(before) == 3
        await stage.roll_out(waits=["control"])
        await stage.look()
        assert await rollouts(stage) == before  # there is room: they wait for the next rung

        async def found_no_room():
            found = await pods_of(stage, **{"forkcast_dev/run": "other"})
            for pod in found:
                await say(stage, pod, conditions=unschedulable(lacking))
            return found

        await stage.until(found_no_room)
        if not leave:
            for _ in range(3):
                await stage.look()
            assert await rollouts(stage) == before
            return

        async def alone():
            return await rollouts(stage) == [f"{BRANCH_NAME}-control-r10"]

        await stage.until(alone)  # it is not measured, and trains on

    play(stage, scene)


@pytest.mark.parametrize("disrupted", [True, False])
def test_a_start_whose_pod_the_cluster_took_away_is_no_restart(stage, disrupted) -> None:
    """One of two pods is evicted, the other fails for it; the Job controller fails the Job."""

    async def scene():
        await stage.create(
            parallelism={"nodes": 2},
            lifecycle={"maxRestarts": 0, "restartBackoffSeconds": 1},
        )

        async def both():
            found = await pods_of(stage, **{"app_kubernetes_io/component": "trainer"})
            return found if len(found) == 2 else None

        first, second = await stage.until(both)
        if disrupted:
            why = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
            told = "The node was low on resource: memory."
            await say(
                stage, first, phase="Failed", reason="Evicted", message=told, conditions=[why]
            )
            await stage.look()  # such a pod may be gone before the others have failed
            status = (await stage.run())["status"]
            assert status["trainer"]["disrupted"] == "gpt-trainer-0"
            stage.start_operator()  # and the operator may be another
        ended = {"exitCode": 1, "reason": "Error", "message": "connection to a peer lost"}
        container = {"name": "trainer", "image": "t", "imageID": "", "ready": False}
        container |= {"restartCount": 0, "state": {"terminated": ended}}
        await say(stage, second, phase="Failed", containerStatuses=[container])

        async def failed():
            job = await stage.cluster.get(JOB, stage.namespace, "gpt-trainer-0")
            return job is None or conditions(job).get("Failed") == "True"

        await stage.until(failed)
        if disrupted:

            async def started_again():
                return "gpt-trainer-1" in await stage.names(JOB)

            await stage.until(started_again)
            status = (await stage.run())["status"]
            assert status["trainer"]["restarts"] == 0
            assert status["trainer"]["disrupted"] == ""  # the new start has not been
            assert (await stage.condition("Failed"))[0] == "False"
        else:
            await stage.look()
            assert await stage.condition("Failed") == ("True", "RestartsExceeded")
            assert "gpt-trainer-1" not in await stage.names(JOB)

    play(stage, scene)
