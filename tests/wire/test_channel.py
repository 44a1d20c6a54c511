"""One set of gRPC options, and plain text only where it is safe."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from forkcast_wire import channel

_SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    made = grpc.server(ThreadPoolExecutor(4), options=channel.SERVER_OPTIONS)
    yield made
    made.stop(None)


def check(made: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(made)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def certificates(folder: Path) -> Path:
    """A new authority and one certificate of it for 127.0.0.1, as a mounted secret has them."""
    folder.mkdir()
    now = dt.datetime.now(dt.UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def sign(name: str, public: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        signed = builder.sign(authority_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    (folder / "ca.crt").write_bytes(sign("authority", authority_key.public_key(), ca=True))
    (folder / "tls.crt").write_bytes(sign("service", key.public_key(), ca=False))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder


def test_plain_text_needs_a_unix_socket_or_the_flag(server: grpc.Server, tmp_path: Path) -> None:
    with pytest.raises(channel.InsecureRefusedError):
        channel.open_channel("127.0.0.1:1")
    with pytest.raises(channel.InsecureRefusedError):
        channel.open_channel("127.0.0.1:1", aio=True)
    with pytest.raises(channel.InsecureRefusedError):
        channel.listen(server, "127.0.0.1:0")
    channel.add_health(server, ["forkcast.v1.Monitor"])
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    port = channel.listen(server, "127.0.0.1:0", insecure_dev=True)
    server.start()
    for made in (
        channel.open_channel(target),
        channel.open_channel(f"127.0.0.1:{port}", insecure_dev=True),
    ):
        with made:
            assert check(made) == check(made, "forkcast.v1.Monitor") == _SERVING


def test_asyncio_channel(server: grpc.Server, tmp_path: Path) -> None:
    channel.add_health(server, [])
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    server.start()

    async def ask() -> int:
        async with channel.open_channel(target, aio=True) as made:
            stub = health_pb2_grpc.HealthStub(made)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status

    assert asyncio.run(ask()) == _SERVING


def test_a_stale_socket_file_is_replaced(server: grpc.Server, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_bytes(b"")
    channel.add_health(server, [])
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
    channel.add_health(server, [])
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


@pytest.mark.parametrize("reflect", [False, True])
def test_reflection_only_behind_the_flag(
    server: grpc.Server, tmp_path: Path, *, reflect: bool
) -> None:
    channel.add_health(server, ["forkcast.v1.Proxy"], reflect=reflect)
    target = f"unix:{tmp_path}/s.sock"
    channel.listen(server, target)
    server.start()
    with channel.open_channel(target) as made:
        stub = reflection_pb2_grpc.ServerReflectionStub(made)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        if not reflect:
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.ServerReflectionInfo(asked, timeout=10))
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            return
        names = next(stub.ServerReflectionInfo(asked, timeout=10)).list_services_response.service
        assert "forkcast.v1.Proxy" in {name.name for name in names}


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
            assert call(os.urandom(size), timeout=20)
        else:
            with pytest.raises(grpc.RpcError) as refused:
                call(os.urandom(size), timeout=20)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
