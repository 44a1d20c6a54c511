"""What the kubelet and Prometheus ask the operator over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from forkcast_operator.kubernetes import metrics

#: A watch that is silent for longer is dead: it is begun anew every 20 s where nothing happens.
DEAD_SECONDS = 75.0


class Health:
    """``sick`` says what only a new start mends, ``waits`` why the process is not ready; "" for
    nothing.
    """

    def __init__(self, sick: Callable[[], str], waits: Callable[[], str]) -> None:
        self._sick, self._waits = sick, waits

    async def healthz(self, _: web.Request) -> web.Response:
        """Liveness: fails where only a new start helps."""
        sick = self._sick()
        return web.Response(text=sick or "ok", status=503 if sick else 200)

    async def readyz(self, _: web.Request) -> web.Response:
        """Readiness; a standby is ready, too."""
        waits = self._waits()
        return web.Response(text=waits or "ok", status=503 if waits else 200)

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus' text format."""
        return web.Response(
            body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


async def serve(
    health: Health, *, health_port: int, metrics_port: int, stack: AsyncExitStack
) -> None:
    """Serve until the stack ends; a port of 0 is not served."""
    probes = web.Application()
    probes.add_routes([web.get("/healthz", health.healthz), web.get("/readyz", health.readyz)])
    figures = web.Application()
    figures.add_routes([web.get("/metrics", health.metrics)])
    for app, port in ((probes, health_port), (figures, metrics_port)):
        if not port:
            continue
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, None, port).start()  # every address, of IPv4 and of IPv6
