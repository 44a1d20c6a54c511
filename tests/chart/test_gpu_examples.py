"""The GPU examples on simulated nodes: admitted, made by the operator, placed by the scheduler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.waiting import until

from .conftest import Kubectl
from .live import Installation, Processes, environment_of, object_store

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
NAMESPACE = "gpus"
#: Simulated nodes carry a taint that nobody's manifest puts up with; the test adds the toleration
#: through the field that is there for it.
TOLERATED = [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}]
GPU = "nvidia.com/gpu"


def _other_cluster() -> bool:
    """Whether a cluster with a node runs here already: there is one network for it."""
    done = subprocess.run(["ip", "link", "show", "cni0"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture(scope="module", params=["Job", "JobSet"])
def cluster(request, start_cluster, tmp_path_factory):
    """(what a trainer is, kubectl) of a cluster with two simulated nodes of eight GPUs each."""
    options = ["--api-only"]
    if request.param == "JobSet":  # its controller runs in a pod
        if _other_cluster():
            pytest.skip("another cluster with a node runs on this machine")
        options = ["--jobset"]
    with start_cluster(tmp_path_factory.mktemp("gpus"), *options, nodes=2) as environment:
        yield request.param, Kubectl(environment)


@pytest.fixture(scope="module")
def installed(cluster, tmp_path_factory):
    """(what a trainer is, kubectl) with the operator running."""
    kind, kubectl = cluster
    kubectl.ok("create", "namespace", NAMESPACE)
    kubectl.ok("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    processes = Processes(tmp_path_factory.mktemp("operator"), environment_of(kubectl))
    with object_store() as endpoint:
        made = Installation(processes, kubectl, endpoint, NAMESPACE)
        try:
            made.start()
            yield kind, kubectl
            assert "Traceback" not in processes.log("operator")
        finally:
            made.stop()


@pytest.mark.parametrize(
    ("file", "nodes"), [("gpt2-medium-4gpu.yaml", 1), ("gpt2-large-8gpu.yaml", 2)]
)
def test_an_example_is_placed(installed, file, nodes):
    kind, kubectl = installed
    body = yaml.safe_load((EXAMPLES / file).read_text())
    body["metadata"]["namespace"] = NAMESPACE
    body["spec"]["podPatch"] = {"tolerations": TOLERATED}
    name = body["metadata"]["name"]
    done = kubectl.apply(body)
    assert done.returncode == 0, done.stderr

    def placed():  # of the first start: simulated pods end at once, and the next one follows
        found = [
            one
            for one in kubectl.get("pods", "-n", NAMESPACE)["items"]
            if one["metadata"]["name"].startswith(f"{name}-trainer-0-")
        ]
        return found if sum("nodeName" in one["spec"] for one in found) >= nodes else None

    pods = until(placed, f"{nodes} pods of {name} on nodes")
    assert len(pods) == nodes
    for pod in pods:
        assert pod["spec"]["nodeName"] in ("kwok-0", "kwok-1")
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"][GPU] == "4"
        assert container["resources"]["requests"][GPU] == "4"
    trainer = kubectl.get(kind.lower(), f"{name}-trainer-0", "-n", NAMESPACE)
    assert trainer["metadata"]["ownerReferences"][0]["name"] == name
    status = kubectl.get("trun", name, "-n", NAMESPACE)["status"]
    assert status["trainer"]["kind"] == kind
    assert status["trainer"]["pods"] == nodes
    assert "Stalled" not in {one["type"] for one in status["conditions"]}
    if nodes > 1 or kind == "JobSet":  # they meet through it; a JobSet's goes with it
        until(lambda: _services(kubectl, name), "a headless Service")


def _services(kubectl: Kubectl, run: str) -> bool:
    found = kubectl.get("services", "-n", NAMESPACE)["items"]
    return any(
        one["metadata"]["name"].startswith(f"{run}-trainer") and one["spec"]["clusterIP"] == "None"
        for one in found
    )
