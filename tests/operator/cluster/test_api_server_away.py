"""The API server is killed in mid-branch and comes back; etcd and pods have not noticed."""

from __future__ import annotations

import pytest

from .processes import wait

pytestmark = pytest.mark.slow


def test_a_branch_survives_an_api_server_that_dies(live) -> None:
    async def scene():
        live.start_operator()
        await live.branch()
        live.server.kill("apiserver")
        live.server.part("start", "apiserver")
        wait(live.server.reachable, 60)
        await live.end_well()
        assert live.healthy()

    live.play(scene)
