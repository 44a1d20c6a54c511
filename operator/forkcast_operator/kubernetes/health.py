"""What the kubelet and Prometheus ask the operator over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import make_wsgi_app

from forkcast_operator.kubernetes import metrics
from forkcast_wire.pages import REQUEST_SECONDS, Pages

#: A watch that is silent for longer is dead: it is begun anew every 20 s where nothing happens.
DEAD_SECONDS = 75.0
_BUSY: Final = "the event loop does not answer"


class Health:
    """``sick`` says what only a new start mends, ``waits`` why the process is not ready; "" for
    nothing. Both are asked in the event loop: one that hangs fails, too.
    """

    def __init__(self, sick: Callable[[], str], waits: Callable[[], str]) -> None:
        self._checks = {"/healthz": sick, "/readyz": waits}

    def probes(self, loop: asyncio.AbstractEventLoop) -> WSGIApplication:
        """Liveness at /healthz, which fails if only a new start helps, and readiness at /readyz; a
        standby is ready, too.
        """

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            check = self._checks.get(environ["PATH_INFO"])
            if check is None:
                return _answer(start_response, HTTPStatus.NOT_FOUND, "not found")
            asked = asyncio.run_coroutine_threadsafe(_ask(check), loop)
            try:
                trouble = asked.result(REQUEST_SECONDS * 0.8)
            except TimeoutError:
                asked.cancel()
                trouble = _BUSY
            status = HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK
            return _answer(start_response, status, trouble or "ok")

        return app


async def _ask(check: Callable[[], str]) -> str:
    return check()


def _answer(start_response: StartResponse, status: HTTPStatus, text: str) -> Iterable[bytes]:
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    start_response(f"{status.value} {status.phrase}", headers)
    return [text.encode()]


async def serve(
    health: Health, *, health_port: int, metrics_port: int, stack: AsyncExitStack
) -> None:
    """Serve until the stack ends; a port of 0 is not served."""
    probes = health.probes(asyncio.get_running_loop())
    for app, port in ((probes, health_port), (make_wsgi_app(metrics.REGISTRY), metrics_port)):
        if port:
            pages = Pages(port, app)
            pages.start()
            stack.push_async_callback(asyncio.to_thread, pages.close)
