"""A real API server for the definitions, and Helm for the chart."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .values_matrix import MATRIX

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts" / "forkcast" / "files" / "crds"
_CLUSTER = ROOT.parent / "shared" / "cluster" / "cluster"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Kubectl:
    """`kubectl` against the test's API server."""

    environment: dict[str, str]

    def __call__(
        self, *arguments: str, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", *arguments],
            input=given,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def ok(self, *arguments: str, given: str | None = None) -> str:
        done = self(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, document: Any, *more: str) -> subprocess.CompletedProcess[str]:
        text = document if isinstance(document, str) else json.dumps(document)
        return self("apply", *more, "-f", "-", given=text)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.ok("get", *arguments, "-o", "json"))


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """An API server with etcd and controllers, the definitions installed."""
    if not _CLUSTER.exists():
        pytest.skip("no command that starts a cluster stands beside the checkout")
    if os.geteuid() != 0:
        pytest.skip("starting a cluster needs root")
    environment = {
        **os.environ,
        "CLUSTER_DIR": str(tmp_path_factory.mktemp("cluster")),
        "CLUSTER_API_PORT": str(free_port()),
        "CLUSTER_ETCD_PORT": str(free_port()),
    }

    def cluster(*arguments: str) -> str:
        done = subprocess.run(
            [str(_CLUSTER), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        cluster("up", "--api-only", "--monitoring")
        lines = [line.removeprefix("export ") for line in cluster("env").splitlines()]
        shell = "; ".join(f"export {line}" for line in lines)
        shown = subprocess.run(
            ["bash", "-c", f"{shell}; env -0"], capture_output=True, check=True, env=environment
        )
        pairs = (one.partition("=") for one in shown.stdout.decode().split("\0") if one)
        kubectl = Kubectl({name: value for name, _, value in pairs})
        kubectl.ok("apply", "-f", str(CRDS))
        kubectl.ok("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield kubectl
    finally:
        cluster("down", "--wipe")


@pytest.fixture(scope="session")
def helm() -> str:
    """The `helm` program that the dev extra brings."""
    beside = Path(sys.executable).parent / "helm"
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed; it is in the dev extra")
    return program


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker of rules and expressions."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it comes with the package prometheus")
    return program


@pytest.fixture(scope="session")
def render(helm, tmp_path_factory):
    """The objects of a case of the matrix, rendered once."""
    folder = tmp_path_factory.mktemp("values")
    known: dict[str, list[dict[str, Any]]] = {}

    def rendered(name: str) -> list[dict[str, Any]]:
        if name not in known:
            done = template(helm, folder, MATRIX[name])
            assert done.returncode == 0, done.stderr
            known[name] = [one for one in yaml.safe_load_all(done.stdout) if one]
        return known[name]

    return rendered


def template(
    helm: str, folder: Path, values: dict[str, Any], *more: str
) -> subprocess.CompletedProcess[str]:
    """What `helm template` says of the chart with these values."""
    path = folder / f"{abs(hash(json.dumps(values)))}.yaml"
    path.write_text(yaml.safe_dump(values))
    return subprocess.run(
        [
            helm,
            "template",
            "demo",
            str(ROOT / "charts" / "forkcast"),
            "-n",
            "forkcast-system",
            "-f",
            str(path),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
