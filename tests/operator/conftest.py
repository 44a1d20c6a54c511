"""A real operator over a folder store and a monitor that has fired one trigger."""

from __future__ import annotations

import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from forkcast.lineage import LineageEntry, key
from forkcast.records import StateKind, Trigger
from forkcast_operator.__main__ import LocalOperator
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import keys
from forkcast_wire.channel import listen
from forkcast_wire.codec import trigger_to_wire
from forkcast_wire.documents import RunInfo
from forkcast_wire.forkcast_pb2_grpc import add_MonitorServicer_to_server
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import FolderStore, put_document

sys.path.insert(0, str(Path(__file__).parent))
from test_local_world import SPEC, SmallMonitor, state

from tests.make import saved_state


class OneTrigger(SmallMonitor):
    """A monitor that has fired one trigger."""

    def __init__(self, trigger: Trigger) -> None:
        super().__init__()
        self.trigger, self.told = trigger, threading.Event()

    def WatchTriggers(self, request, context):
        yield pb.TriggerEvent(seq=1, trigger=trigger_to_wire(self.trigger))
        self.told.set()


@pytest.fixture
def operate(tmp_path):
    """An operator that has received a trigger, over a store with a lineage; and its monitor."""
    servers = []

    def start(trigger: Trigger, *lineage: LineageEntry, spec: TrainingRunSpec = SPEC):
        store = FolderStore(tmp_path / "store")
        for step in (70, 80, 98):
            saved_state(
                store, state(StateKind.RING, keys.state(StateKind.RING, 1, 1, step), step, 1)
            )
        for entry in lineage:
            put_document(store, key(entry.epoch), entry)
        service, server = OneTrigger(trigger), grpc.server(futures.ThreadPoolExecutor(4))
        add_MonitorServicer_to_server(service, server)
        target = f"unix:{tmp_path}/m.sock"
        listen(server, target)
        server.start()
        servers.append(server)
        info = RunInfo(uid="u", name="run", manifest_digest="d")
        operator = LocalOperator(spec, info, store, tmp_path, target, "")
        operator.watch(service.told)  # until it has been told
        return operator, store, service

    yield start
    for server in servers:
        server.stop(None)
