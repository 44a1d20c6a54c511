"""A namespace is deleted, runs and all, while no operator is there to take the finalizers off."""

from __future__ import annotations

import json

import pytest

from forkcast_wire import catalogue, keys
from tests.waiting import HANG_OPTION

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", ["there", pytest.param("away", marks=pytest.mark.faults)])
def test_after_the_operator_is_back_the_namespace_ends(live, store) -> None:
    namespace, kubectl = live.server.namespace, live.server.kubectl

    async def scene():
        home = f"{namespace}-system"
        kubectl("create", "namespace", home)
        live.start_operator(lease_namespace=home)
        await live.branch()
        live.process.terminate()
        live.process.wait()
        kubectl("delete", "namespace", namespace, "--wait=false")

        async def held():
            body = json.loads(kubectl("get", "namespace", namespace, "-o", "json"))
            conditions = body["status"].get("conditions", [])
            return any(
                c["type"] == "NamespaceFinalizersRemaining" and c["status"] == "True"
                for c in conditions
            )

        await live.until(held)
        if store == "away":
            live.gateway.kill()
        live.start_operator("b", lease_namespace=home)
        kubectl("wait", "trun/gpt", "-n", namespace, "--for=delete", HANG_OPTION)
        # its controller would look again when pods have had their grace, or sees a change
        kubectl("annotate", "namespace", namespace, "test=look")
        kubectl("wait", f"namespace/{namespace}", "--for=delete", HANG_OPTION)
        assert live.stage.uid in live.monitor.forgotten
        if store == "there":
            assert catalogue.read(live.stage.store).pins == {}
            assert live.stage.store.head(keys.RUN) is not None  # records are kept unless asked
        assert live.healthy()
        kubectl("delete", "namespace", home, "--wait=false")

    live.play(scene)
