"""How Forkcast's services are reached and offered: one set of gRPC options for all of them.

gRPC's own defaults would let a half-open connection live for two hours on the server's side, and
refuse a client's keepalive pings; both sides are set here. Plain text is for Unix sockets, whose
folder only the owner can enter, or behind an explicit flag.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, overload

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from forkcast_wire import crash_calls

_MESSAGE_BYTES = 4 << 20
CLIENT_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1024),
    # Otherwise a second server binds the same port and takes every other connection.
    ("grpc.so_reuseport", 0),
]


class InsecureRefusedError(ValueError):
    """A plain-text address that is not a Unix socket, without the explicit flag."""


def _check(target: str, tls: Path | None, *, insecure: bool) -> None:
    if tls is None and not insecure and not target.startswith("unix:"):
        raise InsecureRefusedError(
            f"{target}: plain text is refused; give a folder with ca.crt, tls.crt and tls.key, or "
            "--insecure-dev"
        )


def _client_credentials(tls: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        (tls / "ca.crt").read_bytes(),
        (tls / "tls.key").read_bytes(),
        (tls / "tls.crt").read_bytes(),
    )


@overload
def open_channel(
    target: str,
    *,
    aio: Literal[False] = False,
    tls: Path | None = None,
    insecure_dev: bool = False,
) -> grpc.Channel: ...


@overload
def open_channel(
    target: str, *, aio: Literal[True], tls: Path | None = None, insecure_dev: bool = False
) -> grpc.aio.Channel: ...


def open_channel(
    target: str, *, aio: bool = False, tls: Path | None = None, insecure_dev: bool = False
) -> grpc.Channel | grpc.aio.Channel:
    """A channel to ``target``, for asyncio where ``aio``. ``tls``: folder of ca.crt, tls.crt and
    tls.key (mutual TLS).

    Raises InsecureRefusedError.
    """
    _check(target, tls, insecure=insecure_dev)
    library = grpc.aio if aio else grpc
    if tls is None:
        channel = library.insecure_channel(target, options=CLIENT_OPTIONS)
    else:
        channel = library.secure_channel(target, _client_credentials(tls), options=CLIENT_OPTIONS)
    return channel if aio else crash_calls.of_client(channel)


def listen(
    server: grpc.Server, target: str, *, tls: Path | None = None, insecure_dev: bool = False
) -> int:
    """Bind the server; returns the port (1 for a Unix socket). A stale socket file is replaced.

    Raises InsecureRefusedError; RuntimeError where the address is taken.
    """
    _check(target, tls, insecure=insecure_dev)
    if target.startswith("unix:"):
        Path(target.removeprefix("unix:")).unlink(missing_ok=True)
    if tls is None:
        return int(server.add_insecure_port(target))
    credentials = grpc.ssl_server_credentials(
        [((tls / "tls.key").read_bytes(), (tls / "tls.crt").read_bytes())],
        root_certificates=(tls / "ca.crt").read_bytes(),
        require_client_auth=True,
    )
    return int(server.add_secure_port(target, credentials))


def add_health(
    server: grpc.Server, services: Iterable[str], *, reflect: bool = False
) -> health.HealthServicer:
    """Health v1 for the named services (and for ''), reflection where asked for."""
    servicer = health.HealthServicer()
    names = ["", *services]
    for name in names:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if reflect:
        reflection.enable_server_reflection([*names[1:], reflection.SERVICE_NAME], server)
    return servicer
