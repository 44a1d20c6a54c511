"""Operators of two releases over the same namespaces, as processes against a real API server."""

from __future__ import annotations

import json

import pytest

from tests.waiting import until

from .processes import CONFIG, get

pytestmark = pytest.mark.slow


@pytest.fixture
def homes(server):
    """The namespaces of two releases."""
    names = [f"{server.namespace}-{number}" for number in ("one", "two")]
    for name in names:
        server.kubectl("create", "namespace", name)
    yield names
    for name in names:
        server.kubectl("delete", "namespace", name, "--wait=false")


def _run(server, name):
    return json.loads(server.kubectl("get", f"trun/{name}", "-n", server.namespace, "-o", "json"))


def test_the_second_release_of_the_same_runs_does_not_begin(server, operators, homes) -> None:
    one, two = homes
    first, _ = operators("a", lease_namespace=one)
    until(lambda: server.holder(one) == "a", every=0.1)
    second, health = operators("b", lease_namespace=two, ready=503)
    until(
        lambda: f"lease {one}/op looks after the same runs" in get(health, "/readyz")[1], every=0.1
    )
    assert get(health, "/healthz") == (200, "ok")  # a new start would not help
    server.create_run("x")
    server.stalled("x")
    leases = server.kubectl("get", "leases", "-n", two, "-o", "name")
    assert leases == ""
    first.terminate()
    assert first.wait() == 0
    until(lambda: get(health, "/readyz")[0] == 200, every=0.1)  # nobody else looks after them now
    until(lambda: server.holder(two) == "b", every=0.1)
    server.create_run("y")
    server.stalled("y")
    assert second.poll() is None


def test_each_looks_after_the_runs_that_name_it(server, operators, homes) -> None:
    one, two = homes
    operators("a", lease_namespace=one)
    until(lambda: server.holder(one) == "a", every=0.1)
    server.create_run("of-blue", managedBy="blue")
    server.create_run("of-nobody")
    server.stalled("of-nobody")
    alone = _run(server, "of-blue")
    assert "status" not in alone
    assert "finalizers" not in alone["metadata"]
    operators("b", lease_namespace=two, config={**CONFIG, "managedBy": "blue"})
    server.stalled("of-blue")
    version = _run(server, "of-nobody")["metadata"]["resourceVersion"]
    server.create_run("blue-again", managedBy="blue")
    server.stalled("blue-again")
    assert _run(server, "of-nobody")["metadata"]["resourceVersion"] == version
