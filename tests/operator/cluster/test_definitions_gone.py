"""Somebody deletes our definitions, and with them all runs; later they are installed again."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import define
from tests.waiting import HANG_OPTION, until

from .processes import Operators, Server, get

pytestmark = pytest.mark.slow
_NAMES = ("branches.forkcast.dev", "trainingruns.forkcast.dev")


@pytest.mark.faults
def test_definitions_can_be_deleted_and_come_back(start_cluster, tmp_path) -> None:
    """On a cluster of its own: definitions belong to all namespaces. The definition of branches goes
    at once; that of runs waits for the finalizer of the run that there is.
    """
    with start_cluster(tmp_path / "cluster", "--api-only") as environment:
        server = Server(environment)
        operators = Operators(server, tmp_path)
        try:
            one = operators("one")
            server.create_run("before")
            server.stalled("before")
            server.kubectl("delete", "crd", *_NAMES, "--wait=false")
            ended_by_the_kubelet(*one)
            if defined(environment):
                two = operators("two")
                until(lambda: not defined(environment), every=0.1)
                ended_by_the_kubelet(*two)
            define(environment)
            operators("three")
            server.create_run("after")
            server.stalled("after")
        finally:
            operators.close(clean=False)  # the library that keeps the watches logs its own end


def test_an_operator_without_branches_begins_anew_when_they_are_there(
    start_cluster, tmp_path
) -> None:
    with start_cluster(tmp_path / "cluster", "--api-only") as environment:
        server = Server(environment)
        operators = Operators(server, tmp_path)
        try:
            server.kubectl("delete", "crd", _NAMES[0], HANG_OPTION)
            process, _ = operators("one")
            define(environment)
            assert process.wait() == 1
        finally:
            operators.close()


def ended_by_the_kubelet(process, health) -> None:
    """A watch is gone: the process ends by itself, or its liveness probe fails."""
    until(lambda: process.poll() is not None or get(health, "/healthz")[0] != 200, every=0.1)
    process.terminate()
    process.wait()


def defined(environment) -> bool:
    """Whether the definition of runs is still there."""
    command = ["kubectl", "get", "crd", _NAMES[1]]
    return not subprocess.run(command, env=environment, capture_output=True, check=False).returncode
