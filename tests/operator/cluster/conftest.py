"""A run, a configuration and a branch as values; and a run on a real API server."""

from __future__ import annotations

import secrets
import subprocess
from concurrent import futures

import grpc
import pytest

from forkcast.branch_rules import BranchRules
from forkcast.records import Trigger, TriggerRule
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run
from forkcast_wire.branches import BranchRecord
from forkcast_wire.channel import listen
from forkcast_wire.forkcast_pb2_grpc import add_MonitorServicer_to_server
from tests.versitygw import Versitygw

from .live import Live
from .processes import Operators, Server
from .stage import SmallMonitor, Stage

UID = "075a10ff-1f5a-48a3-9968-60e178b53fc8"


@pytest.fixture
def config() -> OperatorConfig:
    return OperatorConfig.model_validate(
        {
            "monitor": {"target": "forkcast-monitor.system.svc:50051", "tls": "/etc/forkcast/tls"},
            "trainer": {"image": "forkcast/trainer:1", "rolloutPriorityClassName": "low"},
            "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
        }
    )


def _make_run(name: str = "gpt", **spec) -> Run:
    given = {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 1000},
        **spec,
    }
    meta = {"name": name, "namespace": "ml", "uid": UID, "generation": 3}
    return Run.of({"metadata": meta, "spec": given})


@pytest.fixture
def make_run():
    return _make_run


@pytest.fixture
def record() -> BranchRecord:
    trigger = Trigger(
        run_uid=UID,
        epoch=0,
        step=288,
        onset_step=286,
        rule=TriggerRule.SINGLE,
        z=4.0,
        index=1.0,
        components={"volatility": 4.0},
        thresholds={"z": 2.5},
    )
    return BranchRecord(
        name="gpt-e0-t288", trigger=trigger, rules=BranchRules(hold_main=False), opened_at=1e9
    )


@pytest.fixture
def server(api_server):
    return Server(api_server)


@pytest.fixture
def operators(server, tmp_path):
    """Starts operators; they end with the test."""
    made = Operators(server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def monitor(tmp_path):
    """A small monitor, and where it is reached."""
    service, running = SmallMonitor(), grpc.server(futures.ThreadPoolExecutor(4))
    add_MonitorServicer_to_server(service, running)
    target = f"unix:{tmp_path}/m.sock"
    listen(running, target)
    running.start()
    yield service, target
    running.stop(None)


@pytest.fixture
def stages(api_server, tmp_path, monkeypatch, monitor):
    """Makes stages, each with a namespace of its own that enforces restricted pods."""
    monkeypatch.setenv("KUBECONFIG", api_server["KUBECONFIG"])

    def make(name):
        namespace = f"t{name}"
        for arguments in (
            ["create", "namespace", namespace],
            ["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"],
        ):
            command = ["kubectl", *arguments]
            subprocess.run(command, env=api_server, check=True, capture_output=True)
        folder = tmp_path / name
        folder.mkdir()
        return Stage(folder, namespace, *monitor)

    return make


@pytest.fixture
def stage(stages):
    return stages(secrets.token_hex(4))


@pytest.fixture
def gateway(tmp_path_factory):
    """A real S3 server of the test's own."""
    made = Versitygw(tmp_path_factory.mktemp("s3"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def live(server, operators, monitor, gateway, tmp_path, monkeypatch):
    """A run with everything real but its pods."""
    monkeypatch.setenv("KUBECONFIG", server.environment["KUBECONFIG"])
    return Live(server, operators, monitor, gateway, tmp_path)
