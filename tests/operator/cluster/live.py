"""A run with everything real but its pods: the operator as a process, API server, S3 server."""

from __future__ import annotations

import asyncio
import json

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import BRANCH, JOB, ClusterError
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_wire.documents import lineage_head
from forkcast_wire.resources import LABEL_COMPONENT
from forkcast_wire.store.s3 import S3Store
from tests.waiting import until_async

from .processes import get
from .stage import Stage

BRANCH_NAME = "gpt-e0-t100"


def conditions(body):
    """Status by type."""
    return {one["type"]: one["status"] for one in body.get("status", {}).get("conditions", [])}


class Live:
    """One run called gpt. Its methods are a user's, a pod's, or those of whoever runs the operator."""

    def __init__(self, server, operators, monitor, gateway, folder) -> None:
        self.server, self.gateway, self._operators = server, gateway, operators
        self.folder = folder
        self.monitor, target = monitor
        self.stage = Stage(folder, server.namespace, self.monitor, target)
        self.config = {
            "monitor": {"target": target, "insecureDev": True},
            "trainer": {"image": "forkcast/trainer:1"},
            "stores": [
                {
                    "endpoint": gateway.endpoint,
                    "bucket": "runs",
                    "credentialsDir": str(gateway.credentials),
                }
            ],
        }
        gateway.make_bucket("runs")
        self.process = self.health = None

    def start_operator(self, name="a", **given) -> None:
        self.process, self.health = self._operators(name, config=self.config, **given)
        self.metrics = self._operators.metrics[name]

    def play(self, scene) -> None:
        """Run the scene with a connection of the test's own."""

        async def main():
            await self.stage.connect()
            try:
                await scene()
            finally:
                await self.stage.cluster.close()

        asyncio.run(main())

    async def until(self, holds):
        """Wait for what an async function says; returns what it said. No answer is not yet."""

        async def said():
            try:
                return await holds()
            except ClusterError:
                return None

        return await until_async(said, holds.__name__, every=0.1)

    # -------------------------------------------------------------------------------------- scenes

    async def train(self, **spec) -> None:
        """A run whose trainer has its workload."""
        made = await self.stage.create(**spec)
        uid, namespace = made["metadata"]["uid"], self.server.namespace
        store, *_ = OperatorConfig.model_validate(self.config).stores
        self.stage.store = S3Store(store.storage(f"{namespace}/gpt-{uid[:8]}/"))

        async def training():
            return "gpt-trainer-0" in await self.trainers()

        await self.until(training)

    async def branch(self, **spec) -> None:
        """A run with a branch open, and as many rollouts under way as may be: two."""
        await self.train(**spec)
        for step in (25, 50, 75, 98, 100):
            self.stage.save_state(StateKind.RING, step)
        self.monitor.fire(self.stage.trigger())

        async def rolling():
            return sum("-r10" in name for name in await self.stage.names(JOB)) == 2

        await self.until(rolling)

    async def end_branch(self):
        """Pods do what they do until the branch has ended; returns it."""

        async def ended():
            await self.stage.roll_out()
            self.stage.adopt()
            found = await self.stage.cluster.get(BRANCH, self.server.namespace, BRANCH_NAME)
            return found if found and conditions(found).get("Finished") == "True" else None

        return await self.until(ended)

    async def end(self) -> dict:
        """The trainer reaches its last step; returns the run when it has finished."""
        self.stage.complete()
        (trainer,) = await self.trainers()
        await self.stage.finish_job(trainer, "Complete")

        async def finished():
            body = await self.stage.run()
            return body if conditions(body).get("Finished") == "True" else None

        return await self.until(finished)

    async def end_well(self) -> None:
        """To the end of branch and run, with all that must hold there."""
        branch = await self.end_branch()
        assert branch["status"]["decision"]["outcome"] == "Accepted"
        run = await self.end()
        assert conditions(run)["Complete"] == conditions(run)["Ready"] == "True"
        assert run["status"]["branches"] | {"total": 1, "accepted": 1} == run["status"]["branches"]
        assert run["status"]["lineage"]["epoch"] == lineage_head(self.stage.store).epoch == 1
        assert run["status"]["trainer"]["restarts"] == 0
        assert await self.trainers() == ["gpt-trainer-0"]

    # --------------------------------------------------------------------------------------- looks

    async def trainers(self) -> list[str]:
        """The names of its trainer's workloads."""
        jobs = await self.stage.cluster.list(
            JOB, self.server.namespace, f"{LABEL_COMPONENT}=trainer"
        )
        return sorted(job["metadata"]["name"] for job in jobs)

    async def ready(self) -> dict:
        """The condition `Ready`."""
        body = await self.stage.run()
        found = body.get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == "Ready"), {})

    def lease(self) -> dict:
        said = self.server.kubectl("get", "lease", "op", "-n", self.server.namespace, "-o", "json")
        return json.loads(said)["spec"]

    def looks(self) -> float:
        """How often the operator has looked at a run since its start."""
        name = 'forkcast_operator_reconcile_seconds_count{kind="TrainingRun"} '
        lines = get(self.metrics, "/metrics")[1].splitlines()
        return next(float(one.removeprefix(name)) for one in lines if one.startswith(name))

    def healthy(self) -> bool:
        return self.process.poll() is None and get(self.health, "/healthz") == (200, "ok")
