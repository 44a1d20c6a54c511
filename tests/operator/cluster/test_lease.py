"""The lease and the API client beside threads that are all stuck, on a real API server."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from forkcast_operator.kubernetes.cluster import LEASE, Cluster, configuration
from forkcast_operator.kubernetes.lease import LeaseLock, lead
from forkcast_operator.kubernetes.scope import Scope

pytestmark = pytest.mark.slow


@pytest.fixture
def connect(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", server.environment["KUBECONFIG"])

    async def made(name):
        return await Cluster.connect(await configuration(), tmp_path / f"{name}.json")

    return made


def test_no_request_waits_for_a_thread_of_the_event_loop(server, connect) -> None:
    async def scene():
        stuck = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        cluster = await connect("kinds")
        waiting = [loop.run_in_executor(None, stuck.wait) for _ in range(3)]
        try:
            assert await cluster.get(LEASE, server.namespace, "none") is None
        finally:
            stuck.set()
            await asyncio.wait(waiting)
            await cluster.close()

    asyncio.run(scene())


@pytest.mark.parametrize(("name", "held"), [("op", True), ("Not A Name", False)])
def test_a_replica_knows_whether_anybody_holds_the_lease(server, connect, name, held) -> None:
    """The API server refuses to write the second one, as it would without the rights."""

    async def scene():
        cluster = await connect("kinds")
        lock = LeaseLock(name, server.namespace, "a", cluster, Scope("test"))
        began, tried = lock.held, asyncio.Event()
        write = lock.create

        async def create(*arguments, **named):
            written = await write(*arguments, **named)
            tried.set()
            return written

        lock.create = create
        leading = asyncio.create_task(lead(lock, tried.wait))
        await tried.wait()
        assert (lock.held > began) is held
        if held:  # a standby sees that somebody writes it
            other = LeaseLock(name, server.namespace, "b", cluster, Scope("test"))
            before = other.held
            await other.get(name, server.namespace)
            assert other.held > before
            before = other.held
            await other.get(name, server.namespace)
            assert other.held == before
        leading.cancel()
        await asyncio.wait({leading})
        await cluster.close()

    asyncio.run(scene())
