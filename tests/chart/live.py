"""The real services as processes on local ports, and a real Prometheus that scrapes them."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto.server import ThreadedMotoServer

from forkcast.records import StateKind, StepStats
from forkcast_wire.manifest import Storage
from forkcast_wire.reporting import Hello, Reporter
from forkcast_wire.store.s3 import S3Store
from tests.make import saved_state, state_ref
from tests.ports import free_port
from tests.waiting import HANG_OPTION, HANG_SECONDS, until

BUCKET = "runs"


def fetched(url: str) -> str:
    """The page, "" where nobody answers yet."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=HANG_SECONDS) as answer:
        return answer.read().decode()
    return ""


@contextmanager
def object_store() -> Iterator[str]:
    """A server of the S3 API with the bucket; gives its endpoint."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=BUCKET)
    try:
        yield endpoint
    finally:
        server.stop()


class Processes:
    """Of one test; all end with it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self._environment = folder, environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: object) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._started[name] = subprocess.Popen(
                [str(part) for part in command],
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def stop(self, name: str) -> None:
        process = self._started.pop(name)
        process.terminate()
        process.wait()

    def stop_all(self) -> None:
        for name in list(self._started):
            self.stop(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


class Installation:
    """Operator, monitor and proxy, each with its metrics; targets: their addresses by job."""

    def __init__(
        self,
        processes: Processes,
        kubectl: Any,
        endpoint: str,
        namespace: str,
        *,
        python: Path = Path(sys.executable),
    ) -> None:
        """python: what the services run on."""
        self.processes, self._kubectl, self._endpoint = processes, kubectl, endpoint
        self.namespace, self._python = namespace, python
        self.targets = {job: f"127.0.0.1:{free_port()}" for job in ("operator", "monitor", "proxy")}
        self._monitor, self._proxy = (f"unix:{processes.folder}/{name}.sock" for name in ("m", "p"))
        self._trainers: list[Trainer] = []

    def start(self) -> None:
        folder = self.processes.folder
        (folder / "keys").mkdir()
        for name in ("accessKeyId", "secretAccessKey"):
            (folder / "keys" / name).write_text("x")
        store = {"endpoint": self._endpoint, "bucket": BUCKET, "credentialsDir": f"{folder}/keys"}
        config = {
            "monitor": {"target": self._monitor},
            "proxy": {"target": self._proxy},
            "trainer": {"image": "t:1"},
            "stores": [store],
        }
        (folder / "operator.yaml").write_text(json.dumps(config))
        self._serve("monitor", "forkcast_monitor", "--state", folder / "state")
        self._serve("proxy", "forkcast_proxy")
        health = free_port()
        self.processes.start(
            "operator",
            *(self._python, "-m", "forkcast_operator.kubernetes", "--config", "operator.yaml"),
            *("--namespace", self.namespace, "--lease-namespace", self.namespace),
            *("--metrics-port", self._port("operator"), "--health-port", health),
        )
        for job in ("monitor", "proxy"):
            until(lambda job=job: fetched(f"http://{self.targets[job]}/metrics"), job)
        until(lambda: fetched(f"http://127.0.0.1:{health}/readyz"), "the operator")

    def _port(self, job: str) -> str:
        return self.targets[job].rpartition(":")[2]

    def _serve(self, job: str, module: str, *more: object) -> None:
        listen = {"monitor": self._monitor, "proxy": self._proxy}[job]
        self.processes.start(
            job,
            *(self._python, "-m", module, *more, "--listen", listen),
            *("--metrics-port", self._port(job)),
        )

    def run(self, name: str, **spec: Any) -> Trainer:
        """A run whose trainer pod is said to run, and which a trainer reports for."""
        body = {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "data": {"train": {"uri": "python-stdlib:"}},
                "training": {"totalSteps": 100_000},
                **spec,
            },
        }
        assert self._kubectl.apply(body).returncode == 0
        pod = until(lambda: self._pods(name), f"a pod of {name}")[0]
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        conditions = [{"type": kind, "status": "True"} for kind in kinds]
        self.pod_is(pod, {"phase": "Running", "conditions": conditions})
        uid = self._kubectl.get("trun", name, "-n", self.namespace)["metadata"]["uid"]
        storage = Storage(
            endpoint=self._endpoint,
            bucket=BUCKET,
            prefix=f"{self.namespace}/{name}-{uid[:8]}/",
            credentials_dir=str(self.processes.folder / "keys"),
        )
        trainer = Trainer(uid, pod, S3Store.connect(storage), self._monitor)
        self._trainers.append(trainer)
        return trainer

    def _pods(self, run: str) -> list[str]:
        labels = f"forkcast.dev/run={run},app.kubernetes.io/component=trainer"
        found = self._kubectl.get("pods", "-n", self.namespace, "-l", labels)["items"]
        return [one["metadata"]["name"] for one in found]

    def pod_is(self, pod: str, status: dict[str, Any]) -> None:
        """What its kubelet would say."""
        patch = json.dumps({"status": status})
        self._kubectl.ok(
            *("patch", "pod", pod, "-n", self.namespace, "--subresource=status", "--type=merge"),
            *("-p", patch),
        )

    def stop(self) -> None:
        for one in self._trainers:
            one.close()
        self._kubectl("delete", "trun", "--all", "-n", self.namespace, HANG_OPTION)
        self.processes.stop_all()


class Trainer:
    """Keeps a first state and a checkpoint, and reports steps without end, 50 a second."""

    def __init__(self, uid: str, pod: str, store: S3Store, monitor: str) -> None:
        self.uid, self.pod, self._store = uid, pod, store
        for kind in (StateKind.RING, StateKind.CHECKPOINT):
            self._save(kind)
        hello = Hello(
            run_uid=uid, epoch=0, attempt=0, rank=0, start_step=0, total_steps=100_000, base_step=0
        )
        self._reporter, self._closed = Reporter(monitor, hello), threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)
        self._thread.start()

    def _save(self, kind: StateKind) -> None:
        saved_state(self._store, state_ref(0, kind, digest="0" * 64), self.uid)

    def _report(self) -> None:
        step, noise = 0, random.Random(0)
        while not self._closed.wait(0.02):
            self._reporter.report(
                StepStats(
                    run_uid=self.uid,
                    epoch=0,
                    attempt=0,
                    rank=0,
                    step=step,
                    loss=3.0 + 0.02 * noise.gauss(0, 1),
                    grad_norm=1.0 + 0.02 * noise.gauss(0, 1),
                    grad_norm_clipped=1.0,
                    learning_rate=1e-3,
                    tokens=(step + 1) * 256,
                )
            )
            step += 1

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._reporter.close()


class Prometheus:
    """The real server, every second."""

    def __init__(self, processes: Processes, targets: dict[str, str], groups: list[Any]) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        program = shutil.which("prometheus")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": True,
                    "static_configs": [{"targets": [address]}],
                }
                for job, address in targets.items()
            ],
        }
        folder = processes.folder
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        processes.start(
            "prometheus",
            *(program, "--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb"),
            f"--web.listen-address={self._url.removeprefix('http://')}",
        )
        until(lambda: fetched(f"{self._url}/-/ready"), "Prometheus")

    def get(self, path: str, **arguments: str) -> Any:
        """`data` of an answer of the HTTP API."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=HANG_SECONDS) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def series(self, expression: str) -> list[Any]:
        """What an instant query returns."""
        found = self.get("query", query=expression)
        assert found["resultType"] in ("vector", "scalar"), expression
        return found["result"]

    def alert(self, name: str) -> str:
        """inactive, pending or firing."""
        rules = [r for g in self.get("rules")["groups"] for r in g["rules"] if r["name"] == name]
        return rules[0]["state"]


def environment_of(kubectl: Any) -> dict[str, str]:
    """For processes that reach the API server as its administrator."""
    return {**os.environ, **kubectl.environment, "POD_NAME": "live", "OMP_NUM_THREADS": "1"}
