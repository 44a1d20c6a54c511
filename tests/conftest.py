"""Real clusters, for the tests that need one; none is started where nobody asks. Helm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.ports import free_port
from tests.waiting import HANG_OPTION, until

# examples are judged by what they give, not by how long they or their drawing take
settings.register_profile("forkcast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forkcast")

_ROOT = Path(__file__).parents[1]
_CLUSTER = Path(os.environ.get("CLUSTER") or _ROOT.parent / "shared" / "cluster" / "cluster")
_CRDS = _ROOT / "charts" / "forkcast" / "files" / "crds"


StartCluster = Callable[..., AbstractContextManager[dict[str, str]]]


@contextmanager
def _cluster(
    folder: Path, *options: str, nodes: int = 0, defined: bool = True
) -> Iterator[dict[str, str]]:
    """A cluster of its own; gives its environment (KUBECONFIG, PATH).

    options: of the command. nodes: simulated ones; with the scheduler, which `--api-only` lacks.
    defined: whether our definitions are installed.
    """
    environment = {
        **os.environ,
        "CLUSTER_DIR": str(folder),
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
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        cluster("up", *options)
        if nodes:
            cluster("start", "scheduler")  # harmless where it runs
            cluster("fake-nodes", str(nodes))
        lines = [line.removeprefix("export ") for line in cluster("env").splitlines()]
        shell = "; ".join(f"export {line}" for line in lines)
        shown = subprocess.run(
            ["bash", "-c", f"{shell}; env -0"], capture_output=True, check=True, env=environment
        )
        pairs = (one.partition("=") for one in shown.stdout.decode().split("\0") if one)
        found = {name: value for name, _, value in pairs}
        if defined:
            define(found)
        yield found
    finally:
        cluster("down", "--wipe")


@pytest.fixture(scope="session")
def start_cluster() -> StartCluster:
    """Starts a cluster of its own, see `_cluster`; skipped where none can be started."""
    if not os.access(_CLUSTER, os.X_OK):
        pytest.skip("no command that starts a cluster is at hand")
    if os.geteuid() != 0:
        pytest.skip("starting a cluster needs root")
    return _cluster


@pytest.fixture(scope="session")
def api_server(
    start_cluster: StartCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The environment (KUBECONFIG, PATH) of an API server with etcd and controllers; nothing runs
    its pods. Our definitions are installed, and those of Prometheus' operator.
    """
    folder = tmp_path_factory.mktemp("cluster")
    with start_cluster(folder, "--api-only", "--monitoring") as environment:
        yield environment


@pytest.fixture(scope="session")
def helm() -> str:
    """The `helm` program that the dev extra brings."""
    beside = Path(sys.executable).parent / "helm"
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed; it is in the dev extra")
    return program


def define(environment: dict[str, str]) -> None:
    """Install our definitions, and wait until they are served."""

    def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    for asked in (
        ("apply", "-f", str(_CRDS)),
        ("wait", "--for=condition=Established", "crd", "--all", HANG_OPTION),
    ):
        done = kubectl(*asked)
        assert done.returncode == 0, done.stderr
    # established is not yet served: for a moment lists are answered with 429
    for kind in ("trainingruns", "branches"):
        until(
            lambda kind=kind: kubectl("get", kind).returncode == 0, f"a list of {kind}", every=0.1
        )
