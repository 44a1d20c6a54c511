"""The operator as a process against a real API server: its watches, its lease, its probes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from forkcast_wire.resources import FINALIZER
from tests.silent_line import Line

from .processes import api_port, get, wait

pytestmark = pytest.mark.slow
#: A watch whose connection is dead is to be noticed within this, seconds.
_NOTICED_SECONDS = 30


def test_a_run_keeps_its_finalizer_and_is_left_alone(server, operators) -> None:
    """The library that keeps the watches has finalizers, too, and takes away what it thinks its."""
    operators("one")
    server.create_run("a")
    server.stalled("a", 60)
    versions = set()
    for _ in range(20):
        meta = json.loads(server.kubectl("get", "trun/a", "-n", server.namespace, "-o", "json"))[
            "metadata"
        ]
        assert FINALIZER in meta.get("finalizers", [])
        versions.add(meta["resourceVersion"])
    assert len(versions) <= 2, "it is written again and again"
    server.kubectl("delete", "trun/a", "-n", server.namespace, "--timeout=60s")


def test_a_watch_that_is_silently_dead_is_noticed_in_time(server, operators) -> None:
    port = int(api_port(Path(server.environment["KUBECONFIG"]).read_text()))
    line = Line(port)
    _, health = operators("a", port=line.port)
    server.create_run("before")
    server.stalled("before", 30)
    assert line.silence() >= 4
    server.create_run("after")
    took = server.stalled("after", 60)
    assert took < _NOTICED_SECONDS
    assert get(health, "/healthz") == (200, "ok")
    line.close()


def test_of_two_operators_one_acts_and_the_other_takes_over(server, operators) -> None:
    first, _ = operators("a")
    wait(lambda: server.holder() == "a", 30)
    _, health = operators("b")
    assert get(health, "/readyz")[0] == 200
    server.create_run("one")
    server.stalled("one", 30)
    first.send_signal(signal.SIGKILL)
    server.create_run("two")
    assert server.stalled("two", 60) < 40  # the lease runs out first
    assert server.holder() == "b"


def test_one_that_leaves_in_order_gives_its_lease_back(server, operators) -> None:
    first, _ = operators("a")
    wait(lambda: server.holder() == "a", 30)
    operators("b")
    while first.poll() is None:  # again and again: it drains in its own time
        first.terminate()
        time.sleep(0.001)
    assert first.returncode == 0
    wait(lambda: server.holder() == "b", 10)


def test_a_stopped_leader_that_wakes_finds_itself_replaced(server, operators) -> None:
    first, _ = operators("a")
    wait(lambda: server.holder() == "a", 30)
    second, _ = operators("b")
    first.send_signal(signal.SIGSTOP)
    wait(lambda: server.holder() == "b", 60)
    first.send_signal(signal.SIGCONT)
    server.create_run("now")
    server.stalled("now", 30)
    assert server.holder() == "b"
    second.terminate()  # the first one is a standby by now
    wait(lambda: server.holder() == "a", 30)


def test_the_api_server_may_be_away(server, operators) -> None:
    _, health = operators("a")
    server.part("stop", "apiserver")
    server.part("start", "apiserver")
    wait(server.reachable, 60)
    server.create_run("later")
    server.stalled("later", 60)
    assert get(health, "/healthz")[0] == 200
