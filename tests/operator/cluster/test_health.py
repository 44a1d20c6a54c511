"""Probes and figures of the operator."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest

from forkcast_operator.kubernetes import health
from tests.ports import free_port


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
