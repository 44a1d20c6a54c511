"""One set of gRPC options, and plain text only where it is safe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from forkcast_wire import channel
from forkcast_wire.client_security import CA, CERTIFICATE, INSECURE, KEY, TOKEN, ClientSecurity
from tests.certificates import Authority
from tests.waiting import HANG_SECONDS

_SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    made = grpc.server(ThreadPoolExecutor(4), options=channel.SERVER_OPTIONS)
    yield made
    made.stop(None)


def add_health(server: grpc.Server) -> None:
    """Something to ask."""
    servicer = health.HealthServicer()
    servicer.set("", _SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def check(made: grpc.Channel) -> int:
    return (
        health_pb2_grpc.HealthStub(made)
        .Check(health_pb2.HealthCheckRequest(), timeout=HANG_SECONDS)
        .status
    )


def certificates(folder: Path) -> Path:
    """A new authority and one certificate of it for 127.0.0.1, as a mounted secret has them."""
    return Authority().issue(folder)


def test_plain_text_needs_a_unix_socket_or_the_flag(server: grpc.Server, tmp_path: Path) -> None:
    with pytest.raises(channel.InsecureRefusedError):
        channel.open_channel("127.0.0.1:1")
    with pytest.raises(channel.InsecureRefusedError):
        channel.open_channel("127.0.0.1:1", aio=True)
    with pytest.raises(channel.InsecureRefusedError):
        channel.listen(server, "127.0.0.1:0")
    add_health(server)
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    port = channel.listen(server, "127.0.0.1:0", insecure_dev=True)
    server.start()
    for made in (
        channel.open_channel(target),
        channel.open_channel(f"127.0.0.1:{port}", insecure_dev=True),
    ):
        with made:
            assert check(made) == _SERVING


def test_asyncio_channel(server: grpc.Server, tmp_path: Path) -> None:
    add_health(server)
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    server.start()

    async def ask() -> int:
        async with channel.open_channel(target, aio=True) as made:
            stub = health_pb2_grpc.HealthStub(made)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=HANG_SECONDS)).status

    assert asyncio.run(ask()) == _SERVING


def test_a_stale_socket_file_is_replaced(server: grpc.Server, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_bytes(b"")
    add_health(server)
    channel.listen(server, f"unix:{path}")
    server.start()
    with channel.open_channel(f"unix:{path}") as made:
        assert check(made) == _SERVING


def test_a_taken_port_is_refused(server: grpc.Server) -> None:
    port = channel.listen(server, "127.0.0.1:0", insecure_dev=True)
    other = grpc.server(ThreadPoolExecutor(1), options=channel.SERVER_OPTIONS)
    with pytest.raises(RuntimeError):
        channel.listen(other, f"127.0.0.1:{port}", insecure_dev=True)


def test_mutual_tls(server: grpc.Server, tmp_path: Path) -> None:
    ours, strangers = certificates(tmp_path / "ours"), certificates(tmp_path / "strangers")
    add_health(server)
    port = channel.listen(server, "127.0.0.1:0", tls=ours)
    server.start()
    target = f"127.0.0.1:{port}"
    with channel.open_channel(target, tls=ours) as made:
        assert check(made) == _SERVING
    for made in (
        channel.open_channel(target, tls=strangers),
        channel.open_channel(target, insecure_dev=True),
        grpc.secure_channel(
            target, grpc.ssl_channel_credentials((ours / "ca.crt").read_bytes())
        ),  # trusts the server, but has no certificate to show
    ):
        with made, pytest.raises(grpc.RpcError) as refused:
            check(made)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_rotated_certificate_counts_from_the_next_connection_on(
    server: grpc.Server, tmp_path: Path
) -> None:
    served = certificates(tmp_path / "served")
    add_health(server)
    target = f"127.0.0.1:{channel.listen(server, '127.0.0.1:0', tls=served)}"
    server.start()
    with channel.open_channel(target, tls=served) as made:
        assert check(made) == _SERVING
        before = ClientSecurity.from_folder(served).fingerprint()
        key = (served / "tls.key").read_bytes()
        rotated = certificates(tmp_path / "rotated")
        (served / "tls.key").write_bytes((rotated / "tls.key").read_bytes())
        # half a rotation: key and certificate are no pair, so the old ones still count
        (tmp_path / "old").mkdir()
        for name in ("ca.crt", "tls.crt"):
            (tmp_path / "old" / name).write_bytes((served / name).read_bytes())
        (tmp_path / "old" / "tls.key").write_bytes(key)
        with channel.open_channel(target, tls=tmp_path / "old") as again:
            assert check(again) == _SERVING
        for name in ("ca.crt", "tls.crt"):
            (served / name).write_bytes((rotated / name).read_bytes())
        with channel.open_channel(target, tls=rotated) as again:
            assert check(again) == _SERVING
        old = channel.open_channel(target, tls=tmp_path / "old")
        with old, pytest.raises(grpc.RpcError):
            check(old)
        assert check(made) == _SERVING  # an open connection goes on
        assert ClientSecurity.from_folder(served).fingerprint() != before


def test_the_environment_says_how_a_client_connects(server: grpc.Server, tmp_path: Path) -> None:
    ours = certificates(tmp_path / "ours")
    add_health(server)
    target = f"127.0.0.1:{channel.listen(server, '127.0.0.1:0', tls=ours)}"
    server.start()
    files = {CA: "ca.crt", CERTIFICATE: "tls.crt", KEY: "tls.key"}
    environment = {name: str(ours / file) for name, file in files.items()}
    security = ClientSecurity.from_environment(environment)
    with channel.open_channel(target, security=security) as made:
        assert check(made) == _SERVING
    assert ClientSecurity.from_environment({INSECURE: "1"}).credentials(target) is None
    assert ClientSecurity.from_environment({}).credentials("unix:x") is None


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, CA),
        ({TOKEN: "token"}, "token"),
        ({CERTIFICATE: "c", KEY: "k"}, CA),
        ({CA: "ca.crt", CERTIFICATE: "c"}, KEY),
        ({CA: "missing"}, "No such file"),
        ({INSECURE: "1", TOKEN: "token"}, "trusted server only"),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(
    environment: dict[str, str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text("x")
    given = {n: v if n == INSECURE else str(tmp_path / v) for n, v in environment.items()}
    with pytest.raises(channel.InsecureRefusedError, match=says):
        channel.open_channel("127.0.0.1:1", security=ClientSecurity.from_environment(given))


@pytest.mark.parametrize(("size", "allowed"), [((4 << 20) - 4096, True), (5 << 20, False)])
def test_messages_are_bounded(
    server: grpc.Server, tmp_path: Path, size: int, *, allowed: bool
) -> None:
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _context: request[:1])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"Echo": echo}),))
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    server.start()
    # A client without our limit, so that it is the server's that is tried.
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as made:
        call = made.unary_unary("/t/Echo")
        if allowed:
            assert call(os.urandom(size), timeout=HANG_SECONDS)
        else:
            with pytest.raises(grpc.RpcError) as refused:
                call(os.urandom(size), timeout=HANG_SECONDS)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_proxy_of_the_environment_is_not_asked(
    server: grpc.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_health(server)
    target = f"127.0.0.1:{channel.listen(server, '127.0.0.1:0', insecure_dev=True)}"
    server.start()
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with channel.open_channel(target, insecure_dev=True) as made:
        assert check(made) == _SERVING
