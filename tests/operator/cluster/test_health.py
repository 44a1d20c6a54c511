"""Probes and figures of the operator."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest

from forkcast_operator.kubernetes import health
from tests.ports import free_port
from tests.waiting import HANG_SECONDS


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_probes_and_figures_are_answered_in_both_families(host) -> None:
    if host == "[::1]" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def scene():
        ports = [free_port(), free_port()]
        checks = health.Health(lambda: "", lambda: True)
        async with AsyncExitStack() as stack, aiohttp.ClientSession() as session:
            await health.serve(checks, health_port=ports[0], metrics_port=ports[1], stack=stack)
            for port, path in zip(ports, ("healthz", "metrics"), strict=True):
                async with session.get(f"http://{host}:{port}/{path}") as answer:
                    assert answer.status == 200

    asyncio.run(scene())


def test_half_open_requests_keep_nobody_from_probes_and_figures() -> None:
    asyncio.run(_half_open())


async def _half_open() -> None:
    ports = [free_port(), free_port()]
    checks = health.Health(lambda: "", lambda: "no lease yet")
    async with AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        await health.serve(checks, health_port=ports[0], metrics_port=ports[1], stack=stack)
        for port in ports:
            for _ in range(100):
                one = socket.create_connection(("127.0.0.1", port), HANG_SECONDS, ("127.0.0.2", 0))
                stack.callback(one.close)
        asked = [(ports[0], "healthz", 200), (ports[0], "readyz", 503), (ports[0], "x", 404)]
        for port, path, status in [*asked, (ports[1], "metrics", 200)]:
            async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                assert answer.status == status


def test_an_event_loop_that_does_not_answer_is_sick(monkeypatch) -> None:
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.0)
    loop, said = asyncio.new_event_loop(), []
    app = health.Health(lambda: "", lambda: "").probes(loop)  # the loop does not run
    body = app({"PATH_INFO": "/healthz"}, lambda status, _: said.append(status))
    loop.run_until_complete(asyncio.sleep(0))  # it comes to what was asked too late
    loop.close()
    assert (said, body) == (["503 Service Unavailable"], [b"the event loop does not answer"])
