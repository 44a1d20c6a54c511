"""Monitor and proxy with certificates that expire: shown, logged, and named by who is kept out."""

import json
import subprocess
import sys

import grpc
import pytest
from cryptography import x509

from forkcast_operator.kubernetes.monitor_link import MonitorLink
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.client_security import ClientSecurity, handshake_trouble
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from tests.certificates import Authority
from tests.ports import free_port
from tests.waiting import HANG_SECONDS, until

from .test_serving import answers

NAME = "forkcast_monitor_certificate_expiry_timestamp_seconds"


def end(path):
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


def told(text):
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [(e["event"], e["certificate"]) for e in events if "certificate" in e]


@pytest.fixture
def monitor(start_monitor, tmp_path):
    """A monitor over TLS: (its process, target, a scrape of its metrics)."""

    def start(folder):
        port, target = free_port(), f"127.0.0.1:{free_port()}"
        arguments = ("--tls", str(folder), "--metrics-port", str(port), "--operator", "cn:service")
        process = start_monitor(*arguments, listen=target)
        return process, target, lambda: answers(port)

    return start


def test_a_monitor_shows_and_tells_when_its_certificates_expire(monitor, tmp_path):
    authority = Authority(days=100)
    served = authority.issue(tmp_path / "served", days=3)
    client = authority.issue(tmp_path / "client")
    process, target, scraped = monitor(served)
    shown = until(scraped)
    assert shown[NAME, (("file", "tls.crt"),)] == end(served / "tls.crt")
    assert shown[NAME, (("file", "ca.crt"),)] == end(served / "ca.crt")
    assert told(process.logged()) == [("certificate.expires", "tls.crt")]
    authority.issue(served, days=50)  # renewed; the next connection has it
    with open_channel(target, tls=client) as channel:
        MonitorStub(channel).ListRuns(
            pb.ListRunsRequest(), wait_for_ready=True, timeout=HANG_SECONDS
        )
    assert scraped()[NAME, (("file", "tls.crt"),)] == end(served / "tls.crt")
    assert told(process.logged()) == [("certificate.expires", "tls.crt")]


def test_an_expired_certificate_is_named_on_both_sides(monitor, tmp_path):
    authority = Authority(days=100)
    served = authority.issue(tmp_path / "served", days=-1)
    client = authority.issue(tmp_path / "client")
    process, target, scraped = monitor(served)
    assert until(scraped)[NAME, (("file", "tls.crt"),)] == end(served / "tls.crt")
    assert told(process.logged()) == [("certificate.expired", "tls.crt")]
    with open_channel(target, tls=client) as channel:
        link = MonitorLink(channel, lambda _: None)
        with pytest.raises(grpc.RpcError) as refused:
            link.stub.ListRuns(pb.ListRunsRequest(), timeout=HANG_SECONDS)
        said = f"{refused.value.code().name}: {refused.value.details()}"
    assert link.handshake_trouble(said) == (
        "the monitor's certificate is refused: certificate has expired"
    )


def test_another_authority_is_no_expiry(monitor, tmp_path):
    process, target, scraped = monitor(Authority(days=100).issue(tmp_path / "served", days=50))
    until(scraped)
    assert told(process.logged()) == []
    stranger = ClientSecurity.from_folder(Authority(name="another").issue(tmp_path / "stranger"))
    with (
        open_channel(target, security=stranger) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        MonitorStub(channel).ListRuns(pb.ListRunsRequest(), timeout=HANG_SECONDS)
    trouble = handshake_trouble(refused.value.details())
    assert trouble
    assert "expired" not in trouble
    assert handshake_trouble("connection refused") == ""


def test_an_expired_client_certificate_is_the_operators_own(monitor, tmp_path):
    authority = Authority(days=100)
    served = authority.issue(tmp_path / "served", days=50)
    client = authority.issue(tmp_path / "client", days=-1)
    _, target, scraped = monitor(served)
    until(scraped)
    with open_channel(target, tls=client) as channel:
        link = MonitorLink(channel, lambda _: None, lambda: ["tls.crt"])
        with pytest.raises(grpc.RpcError) as refused:
            link.stub.ListRuns(pb.ListRunsRequest(), timeout=HANG_SECONDS)
        said = f"{refused.value.code().name}: {refused.value.details()}"
    assert link.handshake_trouble(said) == (
        "the operator's own tls.crt for the monitor: certificate has expired"
    )


def test_a_proxy_shows_and_tells_it_too(tmp_path):
    served = Authority(days=100).issue(tmp_path / "served", days=3)
    port = free_port()
    command = [sys.executable, "-m", "forkcast_proxy", "--listen", f"127.0.0.1:{free_port()}"]
    command += ["--tls", str(served), "--metrics-port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        shown = until(lambda: answers(port))
        name = NAME.replace("monitor", "proxy")
        assert shown[name, (("file", "tls.crt"),)] == end(served / "tls.crt")
        assert told((tmp_path / "log").read_text()) == [("certificate.expires", "tls.crt")]
    finally:
        process.kill()
        process.wait()
