"""How Forkcast's services are reached and offered: one set of gRPC options for all of them.

gRPC's own defaults would let a half-open connection live for two hours on the server's side, and
refuse a client's keepalive pings; both sides are set here. Plain text is for Unix sockets, whose
folder only the owner can enter, or behind an explicit flag.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, overload

import grpc
import grpc.aio
import structlog

from forkcast_wire import crash_calls
from forkcast_wire.certificates import Name, expiries_of
from forkcast_wire.client_security import ClientSecurity, InsecureRefusedError

__all__ = ["CLIENT_OPTIONS", "SERVER_OPTIONS", "InsecureRefusedError", "listen", "open_channel"]

_log = structlog.get_logger()
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
    # Our services are near; a proxy of the environment (http_proxy in a pod) leads away from them.
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1024),
    # Calls that came in one turn of the loop wait to be taken; from 1,000 on gRPC would by default
    # cancel some of them at random, known callers' too.
    ("grpc.server.max_pending_requests", 16_384),
    ("grpc.server.max_pending_requests_hard_limit", 32_768),
    # Otherwise a second server binds the same port and takes every other connection.
    ("grpc.so_reuseport", 0),
]
#: Over TCP a connection ends after an hour, so that its caller is authenticated anew.
TCP_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
]


def server_options(target: str, receive_bytes: int = _MESSAGE_BYTES) -> list[tuple[str, int]]:
    """The options of a server at ``target`` whose requests are at most ``receive_bytes`` long."""
    options = dict(SERVER_OPTIONS)
    options["grpc.max_receive_message_length"] = receive_bytes
    if not target.startswith("unix:"):
        options.update(TCP_OPTIONS)
    return list(options.items())


@overload
def open_channel(
    target: str,
    *,
    aio: Literal[False] = False,
    tls: Path | None = None,
    insecure_dev: bool = False,
    security: ClientSecurity | None = None,
) -> grpc.Channel: ...


@overload
def open_channel(
    target: str,
    *,
    aio: Literal[True],
    tls: Path | None = None,
    insecure_dev: bool = False,
    security: ClientSecurity | None = None,
) -> grpc.aio.Channel: ...


def open_channel(
    target: str,
    *,
    aio: bool = False,
    tls: Path | None = None,
    insecure_dev: bool = False,
    security: ClientSecurity | None = None,
) -> grpc.Channel | grpc.aio.Channel:
    """A channel to ``target``, for asyncio where ``aio``. ``tls``: folder of ca.crt, tls.crt and
    tls.key (mutual TLS). Where neither it nor ``security`` is given, the environment says how
    (see ClientSecurity); a Unix socket needs nothing.

    The certificates are those of now: after a rotation a new channel reads the new ones. A token
    is read anew for every call. Raises InsecureRefusedError.
    """
    if security is None:
        security = _security(target, tls, insecure_dev=insecure_dev)
    credentials = security.credentials(target)
    library = grpc.aio if aio else grpc
    if credentials is None:
        channel = library.insecure_channel(target, options=CLIENT_OPTIONS)
    else:
        channel = library.secure_channel(target, credentials, options=CLIENT_OPTIONS)
    return channel if aio else crash_calls.of_client(channel)


def _security(target: str, tls: Path | None, *, insecure_dev: bool) -> ClientSecurity:
    if tls is not None:
        return ClientSecurity.from_folder(tls)
    if insecure_dev or target.startswith("unix:"):
        return ClientSecurity(insecure_dev=insecure_dev)
    return ClientSecurity.from_environment()


class ServerCertificates:
    """tls.key, tls.crt and ca.crt of a folder, read again before every handshake, so that a rotated
    secret counts from the next connection on. Files that do not belong together are not taken: the
    last good ones stay. expiries: told when those expire that count from now on, by file.
    """

    def __init__(
        self, folder: Path, expiries: Callable[[Mapping[Name, float]], None] = lambda _: None
    ) -> None:
        self._folder, self._expiries = folder, expiries
        self._content = self._read()
        self._expiries(self._check())
        self.first = self._configuration()

    def _read(self) -> tuple[bytes, bytes, bytes]:
        names = ("tls.key", "tls.crt", "ca.crt")
        key, certificate, authority = ((self._folder / name).read_bytes() for name in names)
        return key, certificate, authority

    def _check(self) -> dict[Name, float]:
        """When they expire. Raises OSError (ssl.SSLError is one) where key and certificate are no
        pair.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        context.load_verify_locations(self._folder / "ca.crt")
        return expiries_of(
            self._folder / "ca.crt", self._folder / "tls.crt", self._folder / "tls.key", "server"
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        key, certificate, authority = self._content
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, None if nothing has changed."""
        try:
            content = self._read()
            if content == self._content:
                return None
            expiries = self._check()
            if self._read() != content:
                return None  # amid a rotation; the next handshake sees its end
        except OSError as error:
            _log.warning("channel.certificates_not_usable", reason=str(error))
            return None
        self._content = content
        self._expiries(expiries)
        return self._configuration()


def listen(
    server: grpc.Server | grpc.aio.Server,
    target: str,
    *,
    tls: Path | None = None,
    insecure_dev: bool = False,
    client_certificates: bool = True,
    expiries: Callable[[Mapping[Name, float]], None] = lambda _: None,
) -> int:
    """Bind the server; returns the port (1 for a Unix socket). A stale socket file is replaced.
    Without ``client_certificates`` the clients prove who they are in another way. ``expiries`` is told,
    at start and after a rotation, when the certificates expire, Unix seconds, by file.

    Raises InsecureRefusedError; OSError if the certificates are not usable; RuntimeError if
    the address is taken.
    """
    unix = target.startswith("unix:")
    if tls is None and not insecure_dev and not unix:
        raise InsecureRefusedError(
            f"{target}: plain text is refused; give a folder with ca.crt, tls.crt and tls.key, or "
            "--insecure-dev"
        )
    if unix:
        Path(target.removeprefix("unix:")).unlink(missing_ok=True)
    if tls is None:
        return int(server.add_insecure_port(target))
    certificates = ServerCertificates(tls, expiries)
    credentials = grpc.dynamic_ssl_server_credentials(
        certificates.first, certificates, require_client_authentication=client_certificates
    )
    return int(server.add_secure_port(target, credentials))
