"""The operator as a process, and the services beside it; what it tells of itself over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import machine
from api_server import ApiServer, free_port
from minio import Minio
from minio.error import MinioException
from prometheus_client.parser import text_string_to_metric_families
from urllib3.exceptions import HTTPError

_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_PAGE = os.sysconf("SC_PAGESIZE")
BUCKET = "runs"
_KEYS = {"accessKeyId": "benchmark", "secretAccessKey": "benchmark-secret"}


def until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """How long it took, seconds. Raises TimeoutError."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(_LOOK_SECONDS)
    return time.monotonic() - started


@dataclass
class Figures:
    """One scrape: the samples by name and labels."""

    at: float
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of that name that carry the labels."""
        return sum(
            value
            for found, marks, value in self.samples
            if found == name and labels.items() <= marks.items()
        )

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """A histogram's cumulative counts by upper bound."""
        counts: dict[float, float] = {}
        for found, marks, value in self.samples:
            if found == f"{name}_bucket" and labels.items() <= marks.items():
                bound = float(marks["le"])
                counts[bound] = counts.get(bound, 0.0) + value
        return counts


def histogram_quantile(before: dict[float, float], after: dict[float, float], q: float) -> float:
    """The quantile of what was observed between two scrapes, linear within a bucket as Prometheus'
    `histogram_quantile`; the last finite bound where it lies beyond. NaN where nothing was.
    """
    bounds = sorted(after)
    counts = [after[one] - before.get(one, 0.0) for one in bounds]
    if not counts or not counts[-1]:
        return float("nan")
    rank, low, below = q * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / max(count - below, 1e-12)
        low, below = bound, count
    return low


class Operator:
    """A process of it with an identity of its own."""

    def __init__(self, name: str, folder: Path, namespace: str, kubeconfig: Path) -> None:
        """Starts it; its configuration stands in the folder."""
        self.metrics_port, self._health_port = free_port(), free_port()
        command = [
            *(sys.executable, "-m", "forkcast_operator.kubernetes"),
            *("--config", str(folder / "operator.yaml"), "--namespace", namespace),
            *("--lease-name", "operator", "--lease-namespace", namespace),
            *("--metrics-port", str(self.metrics_port), "--health-port", str(self._health_port)),
        ]
        self.log = folder / f"{name}.log"
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAME": name}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def ready(self) -> bool:
        """Whether its caches are filled. Raises RuntimeError where it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the operator ended: {self.log.read_text()[-2000:]}")
        with suppress(OSError):
            url = f"http://127.0.0.1:{self._health_port}/readyz"
            with urllib.request.urlopen(url, timeout=5):
                return True
        return False

    def scrape(self) -> Figures:
        """Its metrics now; nothing where it does not answer."""
        figures = Figures(time.time())
        with suppress(OSError):
            url = f"http://127.0.0.1:{self.metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                figures.samples += [(s.name, dict(s.labels), s.value) for s in family.samples]
        return figures

    def runs(self) -> int:
        """How many runs it has seen and judged."""
        return int(self.scrape().sum("forkcast_operator_runs"))

    @property
    def cpu_seconds(self) -> float:
        """Spent so far."""
        return machine.cpu_seconds(self.process.pid)

    @property
    def resident_mb(self) -> float:
        """Memory now, 10^6 bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * _PAGE / 1e6

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


class ObjectStore:
    """A real S3 server over a folder."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        """Starts it and makes the bucket. Raises NoClusterError, TimeoutError."""
        self.port = free_port()
        for part in ("data", "meta"):
            (folder / part).mkdir(parents=True)
        self.credentials = folder / "keys"
        self.credentials.mkdir()
        for name, value in _KEYS.items():
            (self.credentials / name).write_text(value)
        access, secret = _KEYS.values()
        command = [
            *(server.program("versitygw"), "--port", f"127.0.0.1:{self.port}", "--quiet"),
            *("--region", "us-east-1", "posix", "--sidecar", str(folder / "meta")),
            str(folder / "data"),
        ]
        environment = {**os.environ, "ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        client = Minio(f"127.0.0.1:{self.port}", access_key=access, secret_key=secret, secure=False)

        def made() -> bool:
            with suppress(MinioException, HTTPError, OSError):
                client.make_bucket(BUCKET)
                return True
            return False

        until(made, _START_SECONDS, "the object store")

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def write_configuration(folder: Path, store: ObjectStore, monitor: str, proxy: str) -> None:
    """operator.yaml."""
    document = {
        "monitor": {"target": monitor, "insecureDev": True},
        "proxy": {"target": proxy, "insecureDev": True},
        "trainer": {"image": "forkcast/trainer:benchmark"},
        "stores": [
            {
                "endpoint": store.endpoint,
                "bucket": BUCKET,
                "credentialsDir": str(store.credentials),
            }
        ],
    }
    (folder / "operator.yaml").write_text(json.dumps(document))
