"""How the monitor and the proxy serve: arguments, listeners, health, metrics, and the way out."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from forkcast_wire import channel, crash, crash_calls
from forkcast_wire.access import OPERATOR, Admission, ByCertificate, ByToken
from forkcast_wire.certificates import Expiries
from forkcast_wire.guard import Guard, Places
from forkcast_wire.pages import Pages
from forkcast_wire.termination import Stop
from forkcast_wire.token_review import ApiReviewer

_log = structlog.get_logger()
_GRACE_SECONDS = 1.0
#: Calls of all peers at once, of those included who are being refused. The last resort: what one
#: caller may have open is bounded by Places, with room left for operators.
_MOST_CALLS = 8192
#: Of the health port, which answers anybody: a probe asks once in some seconds.
_PROBES = Places(per_peer=16, read_seconds=5.0)
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The arguments that both services have; `add_arguments` describes them."""

    listen: str
    tls: Path | None
    auth: Literal["mtls", "token"]
    operators: frozenset[str]
    trust_domain: str
    audience: str
    review: tuple[str, Path, Path] | None
    insecure_dev: bool
    health_port: int
    metrics_port: int
    reflection: bool

    def admission(self) -> Admission | None:
        """None where the callers are not asked: a Unix socket, or development. Raises ValueError."""
        if self.tls is None:
            return None
        if self.auth == "mtls":
            return ByCertificate(self.operators, self.trust_domain)
        if self.review is None:
            in_cluster = ApiReviewer.in_cluster(self.audience)
            return ByToken(in_cluster, self.operators, self.audience)
        url, ca, token = self.review
        reviewer = ApiReviewer(url=url, ca=ca, token=token, audience=self.audience)
        return ByToken(reviewer, self.operators, self.audience)


def add_arguments(parser: argparse.ArgumentParser, audience: str) -> None:
    """What `from_arguments` reads."""
    add = parser.add_argument
    add("--listen", required=True, help="gRPC address: unix:PATH or HOST:PORT")
    add("--tls", type=Path, help="folder of ca.crt, tls.crt, tls.key; read again when they change")
    add(
        "--auth",
        choices=["mtls", "token"],
        default="mtls",
        help="with --tls: clients show a certificate of ca.crt, or a service account's token",
    )
    add(
        "--operator",
        action="append",
        default=[],
        metavar="NAMESPACE/ACCOUNT",
        help="who may do everything; cn:NAME for a certificate's common name; may be given again",
    )
    add(
        "--trust-domain",
        default="cluster.local",
        help="of the certificates' SPIFFE ids; those of other domains are refused",
    )
    add("--audience", default=audience, help="of the tokens")
    add("--review-url", help="API server for TokenReview; default: the pod's own cluster")
    add("--review-ca", type=Path, help="its authority")
    add("--review-token", type=Path, help="file of the token to ask with")
    add("--insecure-dev", action="store_true", help="plain text and no questions on a TCP port")
    add("--health-port", type=int, default=0, help="health v1 alone, in plain text; 0 = off")
    add("--metrics-port", type=int, default=0, help="Prometheus port; 0 = off")
    add("--reflection", action="store_true", help="gRPC reflection")


def from_arguments(given: argparse.Namespace) -> Serving:
    """Raises ValueError where the arguments contradict each other."""
    review = (given.review_url, given.review_ca, given.review_token)
    if any(review) and not all(review):
        raise ValueError("--review-url, --review-ca and --review-token go together")
    if given.review_url and not given.review_url.startswith("https://"):
        raise ValueError(f"--review-url {given.review_url}: tokens go over https only")
    if given.auth == "token" and given.tls is None:
        raise ValueError("--auth token: needs --tls, tokens never go in plain text")
    for one in given.operator:
        if not OPERATOR.fullmatch(one):
            raise ValueError(
                f"--operator {one}: NAMESPACE/ACCOUNT, or cn:{one} for a certificate's common name"
            )
    return Serving(
        listen=given.listen,
        tls=given.tls,
        auth=given.auth,
        operators=frozenset(given.operator),
        trust_domain=given.trust_domain,
        audience=given.audience,
        review=review if all(review) else None,
        insecure_dev=given.insecure_dev,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        reflection=given.reflection,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is served. name: of the gRPC service. add: puts its servicer into a server. refused: is
    told the reason of every refused caller. receive_bytes: of the largest request. drain: ends the
    open streams. expiry: when the certificates expire, Unix seconds, by file. places: what a caller
    may have open.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    registry: CollectorRegistry
    refused: Callable[[str], None]
    receive_bytes: int
    drain: Callable[[], Awaitable[None]]
    expiry: Gauge
    places: Places = Places()  # noqa: RUF009  frozen


class Running(AbstractAsyncContextManager["Running"]):
    """The service from `async with` to its end. port: of the gRPC server, health_port: of the
    plain health server; metrics_port.
    """

    def __init__(self, serving: Serving, service: Service) -> None:
        self._serving, self._service = serving, service
        guard = Guard(serving.admission(), service.refused, service.places, service.receive_bytes)
        self._server = grpc.aio.server(
            interceptors=[guard, *crash_calls.of_server()],
            options=channel.server_options(serving.listen, service.receive_bytes),
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        self._plain = grpc.aio.server(
            interceptors=[Guard(None, service.refused, _PROBES, _PROBE_BYTES)],
            options=channel.server_options("", _PROBE_BYTES),
        )
        self._health = health.aio.HealthServicer()
        self._expiries = Expiries(service.expiry)
        self._pages: Pages | None = None
        self._telling: asyncio.Task[None] | None = None
        self.port = self.health_port = self.metrics_port = 0

    async def __aenter__(self) -> Self:
        """Raises InsecureRefusedError, OSError, RuntimeError as `channel.listen` does."""
        given, name = self._serving, self._service.name
        self._service.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if given.reflection:
            names = [name, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._server)
        self.port = channel.listen(
            self._server,
            given.listen,
            tls=given.tls,
            insecure_dev=given.insecure_dev,
            client_certificates=given.auth == "mtls",
            expiries=self._expiries.use,
        )
        if given.health_port:  # a kubelet's probe speaks no TLS
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._plain)
            self.health_port = self._plain.add_insecure_port(f"[::]:{given.health_port}")
            await self._plain.start()
        if given.metrics_port:
            self._pages = Pages(given.metrics_port, make_wsgi_app(self._service.registry))
            self._pages.start()
            self.metrics_port = self._pages.server_port
        crash.reach("before-serving")
        await self._server.start()
        for one in ("", name):
            await self._health.set(one, health_pb2.HealthCheckResponse.SERVING)
        self._telling = asyncio.create_task(self._expiries.tell_for_ever(), name="certificates")
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Not serving, the streams ended, no new calls, and what still runs gets a second."""
        if self._telling is not None:
            self._telling.cancel()
        await self._health.enter_graceful_shutdown()
        await self._service.drain()
        await self._server.stop(_GRACE_SECONDS)
        await self._plain.stop(None)
        if self._pages is not None:
            await asyncio.to_thread(self._pages.close)


async def serve_until(stop: Stop, serving: Serving, service: Service) -> None:
    """Serve until ``stop`` is set, then drain; what is set again does not hurry it."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(stop.fileno(), stopped.set)
    try:
        async with Running(serving, service) as running:
            _log.info(
                "service.serving",
                service=service.name,
                listen=serving.listen,
                port=running.port,
                health_port=running.health_port,
                metrics_port=running.metrics_port,
            )
            await stopped.wait()
            loop.remove_reader(stop.fileno())  # it stays readable
            _log.info("service.draining", service=service.name)
    finally:
        loop.remove_reader(stop.fileno())
