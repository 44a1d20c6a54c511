"""A request that nobody answers costs its own time; its neighbours are left to their ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from forkcast_operator.kubernetes import cluster as module
from forkcast_operator.kubernetes.cluster import RUN, Cluster, UnansweredError
from tests.waiting import HANG_SECONDS


class Server:
    """/slow answers when it is let, /silent never."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def slow(self, _: web.Request) -> web.Response:
        self.asked.set()
        await self.let.wait()
        return web.Response(text="here")

    async def silent(self, _: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async def start(self, stack) -> str:
        app = web.Application()
        app.add_routes([web.get("/slow", self.slow), web.get("/silent", self.silent)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"


def test_a_neighbour_of_a_silent_request_ends_well(monkeypatch) -> None:
    async def scene():
        server = Server()
        async with contextlib.AsyncExitStack() as stack:
            url = await server.start(stack)
            client = ApiClient(Configuration(host=url))
            cluster = Cluster(client, None)
            stack.push_async_callback(cluster.close)
            cluster._kinds[RUN] = None

            async def ask(path):
                def call(_):
                    return client.rest_client.request("GET", f"{url}/{path}")

                return await cluster._call("get", RUN, call, writes=False)

            monkeypatch.setattr(module, "_REQUEST_SECONDS", HANG_SECONDS)
            neighbour = asyncio.create_task(ask("slow"))
            await server.asked.wait()
            before = client.rest_client.pool_manager
            monkeypatch.setattr(module, "_REQUEST_SECONDS", 0.1)
            with pytest.raises(UnansweredError):
                await ask("silent")
            assert client.rest_client.pool_manager is not before
            server.let.set()
            answer = await neighbour
            assert answer.status == 200
            monkeypatch.setattr(module, "_REQUEST_SECONDS", HANG_SECONDS)
            assert (await ask("slow")).status == 200  # on a connection of its own

    asyncio.run(scene())
