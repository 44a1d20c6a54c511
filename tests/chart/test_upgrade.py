"""From each earlier chart to this one on a real API server of its own: what users have survives."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from forkcast_wire.fields import API_VERSION
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import FINALIZER
from tests.waiting import HANG_OPTION

from .conftest import Kubectl

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "forkcast"
PREVIOUS = sorted((Path(__file__).parent / "previous").glob("*.tgz"))
NAMESPACE, LAB = "forkcast-system", "lab"
VALUES = {
    "objectStore": {"mode": "Bundled", "bundled": {"persistence": {"enabled": False}}},
    "watchNamespaces": [LAB],
    "operator": {"replicas": 2},
}
STATUS = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Running",
            "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
    "progress": {"step": 5, "totalSteps": 10, "tokens": 40, "percentage": 50},
}
KINDS = ("trainingruns", "branches")


@pytest.fixture(params=PREVIOUS, ids=lambda p: p.stem)
def upgraded_from(request, helm, start_cluster, tmp_path_factory):
    """An API server with the earlier chart's release, and a function that calls Helm."""
    with start_cluster(
        tmp_path_factory.mktemp("upgrade"), "--api-only", defined=False
    ) as environment:
        kubectl = Kubectl(environment)
        for name in (NAMESPACE, LAB):
            kubectl.ok("create", "namespace", name)
        values = tmp_path_factory.mktemp("values") / "values.yaml"
        values.write_text(yaml.safe_dump(VALUES))

        def call(*arguments):
            done = subprocess.run(
                [helm, "-n", NAMESPACE, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        call("install", "demo", str(request.param), "-f", str(values))
        kubectl.ok("wait", "--for=condition=Established", "crd", "--all", HANG_OPTION)
        yield kubectl, call, values


def _runs():
    """The examples, and the smallest one there is."""
    found = [
        one
        for path in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        if one and one["kind"] == "TrainingRun"
    ]
    least = {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 10}}
    found.append({"apiVersion": API_VERSION, "kind": "TrainingRun", "metadata": {}, "spec": least})
    for number, one in enumerate(found):
        one["metadata"] = {
            "name": f"run-{number}",
            "namespace": LAB,
            "finalizers": [FINALIZER],
        }
    return found


def _apply(kubectl, manifests):
    done = kubectl.apply({"apiVersion": "v1", "kind": "List", "items": manifests})
    assert done.returncode == 0, done.stderr


def _standing(kubectl):
    runs = kubectl.get("trun", "-n", LAB)["items"]
    return {one["metadata"]["name"]: one for one in runs}


def _without_new_defaults(now, before):
    """``now``, of a spec, with only the fields that ``before`` has."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {k: _without_new_defaults(v, before[k]) for k, v in now.items() if k in before}
    return now


def test_runs_and_release_survive_the_upgrade(upgraded_from) -> None:
    kubectl, helm, values = upgraded_from
    manifests = _runs()
    _apply(kubectl, manifests)
    patch = json.dumps({"status": STATUS})
    kubectl.ok("patch", "trun", "run-0", "-n", LAB, "--subresource=status", "--type=merge", "-p", patch)  # fmt: skip
    names = ("demo-forkcast-tls", "demo-forkcast-store")
    secrets = [kubectl.get("secret", name, "-n", NAMESPACE)["data"] for name in names]
    before = _standing(kubectl)

    helm("upgrade", "demo", str(CHART), "--reset-then-reuse-values")

    for plural in KINDS:
        served = kubectl.get("crd", f"{plural}.forkcast.dev")
        wanted = yaml.safe_load((CHART / f"files/crds/{plural}.forkcast.dev.yaml").read_text())
        assert served["spec"]["versions"][0]["schema"] == wanted["spec"]["versions"][0]["schema"]
        assert served["status"]["storedVersions"] == ["v1alpha1"]
    after = _standing(kubectl)
    assert after.keys() == before.keys()
    for name, run in after.items():
        old = before[name]
        for field in ("uid", "generation", "finalizers"):
            assert run["metadata"][field] == old["metadata"][field]
        assert _without_new_defaults(run["spec"], old["spec"]) == old["spec"]
        assert run.get("status") == old.get("status")
        TrainingRunSpec.model_validate(run["spec"])
    _apply(kubectl, manifests)  # still valid: the same again, and something that may change
    changed = copy.deepcopy(manifests)
    for one in changed:
        one["spec"]["suspend"] = True
    _apply(kubectl, changed)
    assert [kubectl.get("secret", name, "-n", NAMESPACE)["data"] for name in names] == secrets
    operator = kubectl.get("deploy", "demo-forkcast-operator", "-n", NAMESPACE)
    assert operator["spec"]["replicas"] == 2  # what the user had set
    helm("rollback", "demo", "1")  # and forth again, by the values file
    helm("upgrade", "demo", str(CHART), "-f", str(values))
    assert _standing(kubectl).keys() == before.keys()
