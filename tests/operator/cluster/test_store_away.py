"""The store is killed in mid-branch and comes back with its data; the run goes on as if nothing was."""

from __future__ import annotations

import pytest

from forkcast_operator.kubernetes.cluster import EVENT, JOB

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("renewals", [4, pytest.param(120, marks=pytest.mark.faults)])
def test_a_branch_survives_a_store_that_is_away(live, renewals) -> None:
    async def scene():
        live.start_operator()
        await live.branch()
        jobs = await live.stage.names(JOB)
        live.gateway.kill()

        async def said():
            ready = await live.ready()
            return ready["status"] == "False" and live.gateway.endpoint in ready["message"]

        await live.until(said)
        holder = live.lease()
        for _ in range(renewals):
            before = live.lease()

            async def renewed(before=before):
                return live.lease()["renewTime"] > before["renewTime"]

            await live.until(renewed)
            assert live.healthy()
            assert await live.stage.condition("Branching") == ("True", "BranchOpen")
        assert live.lease()["leaseTransitions"] == holder["leaseTransitions"]
        assert await live.stage.names(JOB) == jobs
        told = await live.stage.cluster.list(EVENT, live.server.namespace, "")
        assert [e["type"] for e in told if e["reason"] == "StoreUnavailable"] == ["Warning"]
        live.gateway.start()
        await live.end_well()

    live.play(scene)
