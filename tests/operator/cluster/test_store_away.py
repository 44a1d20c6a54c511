"""The store is killed in mid-branch and comes back with its data; the run goes on as if nothing was."""

from __future__ import annotations

import asyncio
import time

import pytest

from forkcast_operator.kubernetes.cluster import EVENT, JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("seconds", [10, pytest.param(300, marks=pytest.mark.faults)])
def test_a_branch_survives_a_store_that_is_away(live, seconds) -> None:
    async def scene():
        live.start_operator()
        await live.branch()
        jobs = await live.stage.names(JOB)
        live.gateway.kill()

        async def said():
            ready = await live.ready()
            return ready["status"] == "False" and live.gateway.endpoint in ready["message"]

        await live.until(said)
        holder, end = live.lease(), time.monotonic() + seconds
        while time.monotonic() < end:
            assert live.healthy()
            assert await live.stage.condition("Branching") == ("True", "BranchOpen")
            await asyncio.sleep(1)
        lease = live.lease()
        assert lease["renewTime"] > holder["renewTime"]
        assert lease["leaseTransitions"] == holder["leaseTransitions"]
        assert await live.stage.names(JOB) == jobs
        told = await live.stage.cluster.list(EVENT, live.server.namespace, "")
        assert [e["type"] for e in told if e["reason"] == "StoreUnavailable"] == ["Warning"]
        live.gateway.start()
        await live.end_well()

    live.play(scene)
