"""A tiny run in a folder, started as users start it; and a real monitor-protocol server."""

import json
import os
import subprocess
import sys
import threading
from concurrent import futures
from contextlib import contextmanager

import boto3
import grpc
import pytest
from moto.server import ThreadedMotoServer

from forkcast_cli.supervisor import Supervisor
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import listen
from forkcast_wire.codec import stats_from_wire
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer, add_MonitorServicer_to_server
from forkcast_wire.manifest import TrainingRun
from tests.make import tiny_run
from tests.ports import free_port
from tests.s3_gateway import gateway_to

UID = "u"


def text_manifest(folder, total, *, training=(), **sections):
    """Of a run on text of its own; sections: further ones of the spec."""
    data = {"train": {"uri": str(folder)}, "sequenceLength": 16}
    given = {"totalSteps": total, "microBatchSize": 2, **dict(training)}
    return TrainingRun.model_validate(
        tiny_run("t", **{"data": data, "training": given, **sections})
    )


def tiny_manifest(*, steps=60, dropout="0.1", processes=1, ring=10, every=30, **training):
    return TrainingRun.model_validate(
        {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "t"},
            "spec": {
                "model": {
                    "architecture": "gpt2-tiny",
                    "size": {"layers": 2, "width": 32, "heads": 2, "dropout": dropout},
                    "dtype": "Float32",
                    "device": "Cpu",
                },
                "data": {
                    "train": {"uri": "python-stdlib:", "maxBytes": 300000},
                    "validation": {"maxBatches": 2},
                    "sequenceLength": 16,
                },
                "optimizer": {"learningRate": "3e-3"},
                "training": {"totalSteps": steps, "microBatchSize": 4, **training},
                "parallelism": {"processesPerNode": processes},
                "checkpoint": {"everySteps": every, "ringEverySteps": ring},
            },
        }
    )


@pytest.fixture(scope="session")
def tiny():
    return tiny_manifest


@pytest.fixture
def make_engine(tmp_path):
    def make(folder=tmp_path, **more):
        spec = tiny_manifest(**more).spec
        return Engine(spec, UID, folder, placement(spec))

    return make


class Run:
    """One work directory, and the trainer in it."""

    def __init__(self, folder, manifest):
        folder.mkdir(exist_ok=True)
        self.folder, self.manifest = folder, manifest
        (folder / "manifest.json").write_text(json.dumps(manifest.document()))
        (folder / "run.json").write_bytes(dump(RunInfo(uid=UID, name="t", manifest_digest="")))

    def start_supervised(self, monitor="", **more):
        """The trainer's command as the supervisor gives it, with another monitor."""
        command = Supervisor(self.manifest.spec, self.folder)._command("trainer")
        command[command.index("--monitor") + 1] = monitor
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FORKCAST_PARENT": str(os.getpid())}
        environment |= more
        return subprocess.Popen(command, cwd=self.folder, env=environment)

    def start(self, monitor="", attempt=0, module="forkcast_trainer"):
        command = [sys.executable, "-m", module, "--manifest", "manifest.json"]
        if module == "forkcast_trainer":
            command += ["--monitor", monitor, "--attempt", str(attempt)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=self.folder, env=environment)

    def progress(self):
        path = self.folder / "progress.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def new_run(tmp_path):
    def make(name="run", **more):
        return Run(tmp_path / name, tiny_manifest(**more))

    return make


@pytest.fixture(scope="session")
def run_in():
    return lambda folder, **more: Run(folder, tiny_manifest(**more))


class Listener(MonitorServicer):
    """Keeps what it is told; tells what it is asked to tell. stalled: reads, and never answers."""

    def __init__(self):
        self.hellos, self.stats, self.gaps, self.batches = [], {}, [], 0
        self.credit, self.stalled, self.acknowledge = 4, False, True
        self.unanswered = 0
        self.most_unanswered = 0
        self._waiting = []
        self.at_hello = {}  # epoch: what to do when it first says hello
        self._lock = threading.Lock()

    def tell(self, **what):
        with self._lock:
            self._waiting.append(pb.Directive(run_uid=UID, **what))

    def _told(self):
        with self._lock:
            told, self._waiting = self._waiting, []
            return told

    def Report(self, request_iterator, context):
        for batch in request_iterator:
            if self.stalled:
                continue
            if batch.HasField("hello"):
                self.hellos.append(batch.hello)
                self.at_hello.pop(batch.hello.epoch, lambda: None)()
                yield pb.Ack(
                    credit=self.credit,
                    resume_from=batch.hello.start_step,
                    directives=self._told(),
                )
                continue
            for message in batch.stats:
                stats = stats_from_wire(message)
                self.stats[stats.key] = stats
            self.gaps += [(gap.first_step, gap.last_step) for gap in batch.gaps]
            self.batches += 1
            if self.acknowledge:
                yield pb.Ack(seq=batch.seq, credit=self.credit, directives=self._told())


class Listening:
    """The listener on a Unix socket; may be stopped and started again."""

    def __init__(self, folder):
        self.listener, self.folder, self.server = Listener(), folder, None
        self.target = f"unix:{folder}/m.sock"

    def start(self):
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        add_MonitorServicer_to_server(self.listener, self.server)
        listen(self.server, self.target)
        self.server.start()

    def stop(self):
        if self.server is not None:
            self.server.stop(0).wait()
            self.server = None


@pytest.fixture
def monitor(tmp_path):
    with listening(tmp_path) as one:
        yield one


@contextmanager
def listening(folder):
    one = Listening(folder)
    one.start()
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="session")
def listening_in():
    return listening


@pytest.fixture(scope="session")
def upstream():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server._port}"
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="runs")
    yield endpoint
    server.stop()


@pytest.fixture
def gateway(upstream):
    with gateway_to(upstream) as made:
        yield made


@pytest.fixture
def start_on_bucket(tmp_path, tiny, gateway):
    """Starts a process of a run whose store is behind the gateway; its log is DIR/log."""
    started = []
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "accessKeyId").write_text("k")
    (keys / "secretAccessKey").write_text("s")

    def make(module, *more, **storage):
        document = tiny(steps=3).document()
        document["spec"]["storage"] = {
            "endpoint": gateway.endpoint,
            "bucket": "runs",
            "prefix": f"{tmp_path.name}/".replace("[", "").replace("]", ""),
            "credentialsDir": str(keys),
            **storage,
        }
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        (tmp_path / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
        command = [sys.executable, "-m", module, "--manifest", "manifest.json", *more]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()
