"""The health check that `helm test` runs, against real servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, start_http_server

from forkcast_wire.health_check import ask, main


@pytest.fixture
def serving():
    """A gRPC server with health v1: a.Service serves, b.Service does not."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("a.Service", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("b.Service", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def page():
    server, thread = start_http_server(0, "127.0.0.1", registry=CollectorRegistry())
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_serve(serving, page, capsys):
    assert main([f"{serving}/a.Service", f"{page}/metrics"]) == 0
    assert capsys.readouterr().out.count("serves") == 2


@pytest.mark.parametrize(("service", "said"), [("b.Service", "status"), ("c.Service", "NOT_FOUND")])
def test_who_does_not_serve_is_named(serving, service, said, capsys):
    assert main(["--seconds", "0", f"{serving}/{service}"]) == 1
    assert said in capsys.readouterr().out


def test_nobody_there():
    assert "UNAVAILABLE" in ask("grpc://127.0.0.1:1/a.Service")
    assert "refused" in ask("http://127.0.0.1:1/")


def test_a_wrong_target_is_bad_input(capsys):
    assert main(["ftp://x"]) == 2
    assert "http:// or grpc://" in capsys.readouterr().err
