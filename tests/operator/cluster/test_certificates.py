"""The operator's own certificate files: shown, told, and used anew when they are replaced."""

from __future__ import annotations

import argparse
import asyncio

import pytest
from cryptography import x509
from kubernetes.aio.client import Configuration
from structlog.testing import capture_logs

from forkcast_operator.kubernetes import __main__ as process
from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.config import Service
from forkcast_operator.kubernetes.failures import monitor_unavailable
from tests.certificates import Authority
from tests.waiting import until_async


@pytest.fixture
def operator(config):
    return process.Operator(argparse.Namespace(namespace=["ml"]), config, Configuration())


def end(path) -> float:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


def shown(service, file) -> float | None:
    labels = {"service": service, "file": file}
    name = "forkcast_operator_certificate_expiry_timestamp_seconds"
    return metrics.REGISTRY.get_sample_value(name, labels)


def test_each_file_of_each_service_shows_its_end(operator, tmp_path) -> None:
    mutual = Authority(days=100).issue(tmp_path / "monitor", name="operator", days=-1)
    tokens = Authority(days=3).issue(tmp_path / "proxy")
    (tokens / "tls.crt").unlink()
    (tokens / "tls.key").unlink()
    with capture_logs() as logs:
        for name, folder in (("monitor", mutual), ("proxy", tokens)):
            operator._channel_to(name, Service(target="127.0.0.1:1", tls=folder)).close()
    assert shown("monitor", "tls.crt") == end(mutual / "tls.crt")
    assert shown("monitor", "ca.crt") == end(mutual / "ca.crt")
    assert shown("proxy", "ca.crt") == end(tokens / "ca.crt")
    assert shown("proxy", "tls.crt") is None
    told = [(line["event"], line["certificate"]) for line in logs]
    assert told == [
        ("certificate.expired", "monitor/tls.crt"),
        ("certificate.expires", "proxy/ca.crt"),
    ]
    assert operator._own_expired() == ["tls.crt"]


def test_new_files_end_the_process_that_opened_its_channels_with_the_old(
    operator, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(process, "_CERTIFICATE_SECONDS", 0.01)
    authority = Authority(days=100)
    folder = authority.issue(tmp_path / "monitor", days=50)
    operator._channel_to("monitor", Service(target="127.0.0.1:1", tls=folder)).close()

    looks, tell = [], operator._expiries.tell
    monkeypatch.setattr(operator._expiries, "tell", lambda: looks.append(tell()))

    async def looked_at() -> bool:
        return len(looks) > 5

    async def scene() -> None:
        waiting = asyncio.create_task(operator._replaced())
        await until_async(looked_at)
        assert not waiting.done()
        authority.issue(folder, days=90)
        await waiting

    asyncio.run(scene())


def test_a_verdict_that_waits_for_an_expired_certificate_says_so() -> None:
    assert "certificate has expired" in monitor_unavailable("certificate has expired").message
    assert monitor_unavailable("").message == "the verdict waits for it"
