"""The API server, or the database behind it, is killed in mid-branch and comes back; pods have not
noticed.
"""

from __future__ import annotations

import pytest

from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("part", ["apiserver", "etcd"])
def test_a_branch_survives_the_death_of_the_control_plane(live, part) -> None:
    async def scene():
        live.start_operator()
        await live.branch()
        live.server.kill(part)
        live.server.part("start", part)
        until(live.server.reachable, every=0.1)
        await live.end_well()
        assert live.healthy()

    live.play(scene)
