"""The operator as a process against a real API server: its watches, its lease, its probes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from forkcast_operator.kubernetes.watch import settings
from forkcast_wire.resources import FINALIZER
from tests.silent_line import Line
from tests.waiting import HANG_OPTION, until

from .processes import api_port, get

pytestmark = pytest.mark.slow


def test_a_run_keeps_its_finalizer_and_is_left_alone(server, operators) -> None:
    """The library that keeps the watches has finalizers, too, and takes away what it thinks its."""
    operators("one")
    server.create_run("a")
    server.stalled("a")
    versions = set()
    for _ in range(20):
        meta = json.loads(server.kubectl("get", "trun/a", "-n", server.namespace, "-o", "json"))[
            "metadata"
        ]
        assert FINALIZER in meta.get("finalizers", [])
        versions.add(meta["resourceVersion"])
    assert len(versions) <= 2, "it is written again and again"
    server.kubectl("delete", "trun/a", "-n", server.namespace, HANG_OPTION)


def test_a_watch_that_is_silently_dead_is_noticed(server, operators) -> None:
    port = int(api_port(Path(server.environment["KUBECONFIG"]).read_text()))
    line = Line(port)
    _, health = operators("a", port=line.port)
    server.create_run("before")
    server.stalled("before")
    assert line.silence() >= 4
    server.create_run("after")
    server.stalled("after")  # without a bound of its own the watch would wait for ever
    assert get(health, "/healthz") == (200, "ok")
    line.close()


def test_the_shipped_watches_notice_within_half_a_minute() -> None:
    watching = settings().watching
    assert watching.inactivity_timeout + watching.connect_timeout < 30
    assert watching.server_timeout < watching.inactivity_timeout  # each end is a sign of life


def test_of_two_operators_one_acts_and_the_other_takes_over(server, operators) -> None:
    first, _ = operators("a")
    until(lambda: server.holder() == "a", every=0.1)
    _, health = operators("b")
    assert get(health, "/readyz")[0] == 200
    server.create_run("one")
    server.stalled("one")
    first.send_signal(signal.SIGKILL)
    server.create_run("two")
    server.stalled("two")  # once the lease has run out
    assert server.holder() == "b"


def test_one_that_leaves_in_order_gives_its_lease_back(server, operators) -> None:
    first, _ = operators("a")
    until(lambda: server.holder() == "a", every=0.1)
    operators("b")

    def left():
        first.terminate()  # again and again: it drains in its own time
        return first.poll() is not None

    until(left, every=0.001)
    assert first.returncode == 0
    assert server.holder() != "a"
    until(lambda: server.holder() == "b", every=0.1)


def test_a_stopped_leader_that_wakes_finds_itself_replaced(server, operators) -> None:
    first, _ = operators("a")
    until(lambda: server.holder() == "a", every=0.1)
    second, _ = operators("b")
    first.send_signal(signal.SIGSTOP)
    until(lambda: server.holder() == "b", every=0.1)
    first.send_signal(signal.SIGCONT)
    server.create_run("now")
    server.stalled("now")
    assert server.holder() == "b"
    second.terminate()  # the first one is a standby by now
    until(lambda: server.holder() == "a", every=0.1)


def test_the_api_server_may_be_away(server, operators) -> None:
    _, health = operators("a")
    server.part("stop", "apiserver")
    server.part("start", "apiserver")
    until(server.reachable, every=0.1)
    server.create_run("later")
    server.stalled("later")
    assert get(health, "/healthz")[0] == 200
