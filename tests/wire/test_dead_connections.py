"""A connection that is dead but open, and a name that does not resolve."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from forkcast_wire import channel
from forkcast_wire.manifest import Storage
from forkcast_wire.reporting import Hello, Reporter
from forkcast_wire.store import StoreUnavailable
from forkcast_wire.store.s3 import S3Store
from tests.make import step_stats
from tests.silent_line import Line
from tests.waiting import HANG_SECONDS

#: Keepalive as the clients of a test use it, ms; the shipped one would keep the test waiting.
_SOON = {"grpc.keepalive_time_ms": 1_000, "grpc.keepalive_timeout_ms": 1_000}


@pytest.fixture
def line():
    server = grpc.server(ThreadPoolExecutor(8), options=channel.SERVER_OPTIONS)
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = channel.listen(server, "127.0.0.1:0", insecure_dev=True)
    server.start()
    made = Line(port)
    yield made
    made.close()
    server.stop(None)


def test_a_stream_over_a_dead_connection_ends_and_the_next_one_is_served(line, monkeypatch) -> None:
    assert dict(channel.CLIENT_OPTIONS).keys() >= _SOON.keys()
    soon = list((dict(channel.CLIENT_OPTIONS) | _SOON).items())
    monkeypatch.setattr(channel, "CLIENT_OPTIONS", soon)
    with channel.open_channel(f"127.0.0.1:{line.port}", insecure_dev=True) as made:
        stub = health_pb2_grpc.HealthStub(made)
        stream = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        assert line.silence()
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)  # without keepalive it would wait for ever
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert health_pb2.HealthCheckResponse.SERVING in answers(stub)


def answers(stub):
    """Of a few calls: the first may still be given to the connection that is just being closed."""
    for _ in range(5):
        with suppress(grpc.RpcError):
            request = health_pb2.HealthCheckRequest()
            yield stub.Check(request, timeout=HANG_SECONDS, wait_for_ready=True).status


def test_the_shipped_keepalive_notices_within_a_minute_on_both_sides() -> None:
    for options in (dict(channel.CLIENT_OPTIONS), dict(channel.SERVER_OPTIONS)):
        assert sum(options[name] for name in _SOON) <= 60_000
        assert options["grpc.keepalive_permit_without_calls"] == 1


def test_a_trainer_does_not_wait_for_a_monitor_whose_name_does_not_resolve(monkeypatch) -> None:
    monkeypatch.setenv("FORKCAST_INSECURE_DEV", "1")
    hello = Hello(run_uid="u", epoch=0, attempt=0, rank=0, start_step=0, total_steps=9, base_step=0)
    reporter = Reporter("monitor.nowhere.invalid:7070", hello)
    reported = threading.Event()

    def steps() -> None:
        for step in range(9):
            reporter.report(step_stats(step))
            assert reporter.directives() == []
        reported.set()

    thread = threading.Thread(target=steps, daemon=True)
    thread.start()
    assert reported.wait(HANG_SECONDS), "a step waited for the monitor"
    reporter.close()
    assert reporter.dropped == 0


def test_a_store_whose_name_does_not_resolve_is_unavailable_and_named(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    storage = Storage.model_validate(
        {"endpoint": "http://store.nowhere.invalid:9000", "bucket": "runs"}
    )
    with pytest.raises(StoreUnavailable, match=r"store\.nowhere\.invalid"):
        S3Store.connect(storage).head("run.json")
