"""Somebody deletes our definitions, and with them all runs; later they are installed again."""

from __future__ import annotations

import pytest

from .processes import Operators, Server, get, wait

pytestmark = pytest.mark.slow


def test_the_operator_outlives_its_definitions_and_takes_new_runs(start_cluster, tmp_path) -> None:
    """On a cluster of its own: definitions belong to all namespaces."""
    from tests.conftest import define

    with start_cluster(tmp_path / "cluster", "--api-only") as environment:
        server = Server(environment)
        operators = Operators(server, tmp_path)
        try:
            process, health = operators("one")
            server.create_run("before")
            server.stalled("before", 60)
            names = ("trainingruns.forkcast.dev", "branches.forkcast.dev")
            server.kubectl("delete", "crd", *names, "--timeout=60s")
            assert process.poll() is None
            define(environment)
            server.create_run("after")
            server.stalled("after", 120)
            wait(lambda: get(health, "/healthz")[0] == 200, 60)
            assert process.poll() is None
        finally:
            operators.close()
