"""The hook before `helm uninstall`, with the rights that the chart gives it, on a real API server."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from forkcast_operator.kubernetes.scope import LABEL
from forkcast_operator.uninstall import ApiError, drop_finalizers, settled
from forkcast_wire.resources import FINALIZER, LABEL_RUN
from tests.uninstall_hook import start_hook
from tests.waiting import HANG_OPTION

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "forkcast"
RELEASE, LAB = "fc-uninstall", "uninstall-lab"


def _run(name, *, suspended=False, **spec):
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": LAB, "finalizers": [FINALIZER, "other.dev/one"]},
        "spec": {
            "suspend": suspended,
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 10},
            **spec,
        },
    }


def _job(name, labels):
    container = {"name": "c", "image": "none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": LAB, "labels": labels},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


@pytest.fixture(scope="module")
def namespaces(kubectl):
    """Of the release and of its runs."""
    for name in (RELEASE, LAB):
        kubectl.ok("create", "namespace", name)
    yield
    for name in (RELEASE, LAB):
        kubectl.ok("delete", "namespace", name, "--wait=false")


@pytest.fixture
def hook(helm, kubectl, namespaces, tmp_path):
    """Runs the hook's program as its service account; the operator's Deployment is there, too."""
    shown = subprocess.run(
        [
            *(
                helm,
                "template",
                "demo",
                str(CHART),
                "-n",
                RELEASE,
                "--set",
                "objectStore.mode=Bundled",
            ),
            *(
                "--set",
                f"watchNamespaces={{{LAB}}}",
                "--show-only",
                "templates/uninstall/hook.yaml",
            ),
            *("--show-only", "templates/operator/deployment.yaml"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    objects = [one for one in yaml.safe_load_all(shown.stdout) if one]
    job = next(one for one in objects if one["kind"] == "Job")
    rest = [one for one in objects if one["kind"] != "Job"]
    kubectl.ok(
        "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": rest})
    )

    def run():
        process = start_hook(
            kubectl.ok, kubectl.environment["KUBECONFIG"], job, tmp_path, "--seconds", "0"
        )
        _, said = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, "", said)

    return run


def test_nothing_is_left_that_needs_an_operator(hook, kubectl):
    for document in (
        _run("busy"),
        _run("idle", suspended=True),
        _job("busy-trainer-0", {LABEL_RUN: "busy"}),
        _job("somebodys", {}),
    ):
        kubectl.ok("apply", "-f", "-", given=json.dumps(document))
    done = hook()
    assert done.returncode == 0, done.stderr
    runs = kubectl.get("trun", "-n", LAB)["items"]
    assert [one["spec"]["suspend"] for one in runs] == [True, True]
    assert [one["metadata"]["finalizers"] for one in runs] == [["other.dev/one"]] * 2
    assert "not_suspended" in done.stderr  # nobody was there to carry it out: said, not waited for
    scale = kubectl.get("deployment", "demo-forkcast-operator", "-n", RELEASE)
    assert scale["spec"]["replicas"] == 0
    kubectl.ok("wait", "job/busy-trainer-0", "-n", LAB, "--for=delete", HANG_OPTION)
    assert [one["metadata"]["name"] for one in kubectl.get("jobs", "-n", LAB)["items"]] == [
        "somebodys"
    ]
    again = hook()  # a hook that is tried again finds nothing to do
    assert again.returncode == 0, again.stderr
    for one in runs:
        patch = json.dumps({"metadata": {"finalizers": None}})
        kubectl.ok("patch", "trun", one["metadata"]["name"], "-n", LAB, "--type=merge", "-p", patch)


def _lease(namespace, since):
    now = dt.datetime.now(dt.UTC)
    about = {"forkcast.dev/managed-by": "", "forkcast.dev/namespaces": ""}
    meta = {"name": "op", "namespace": namespace, "labels": LABEL, "annotations": about}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": meta,
        "spec": {
            "holderIdentity": "pod",
            "leaseDurationSeconds": 15,
            "acquireTime": (now - since).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


def test_runs_of_another_release_are_left_alone(hook, kubectl):
    """Those that name another operator; and all, if another release's looks after the same ones."""
    for document in (
        _run("theirs", managedBy="blue"),
        _job("theirs-trainer-0", {LABEL_RUN: "theirs"}),
    ):
        kubectl.ok("apply", "-f", "-", given=json.dumps(document))
    done = hook()
    assert done.returncode == 0, done.stderr
    theirs = kubectl.get("trun", "theirs", "-n", LAB)
    assert theirs["spec"]["suspend"] is False
    assert FINALIZER in theirs["metadata"]["finalizers"]
    assert kubectl.get("job", "theirs-trainer-0", "-n", LAB)
    kubectl.ok("apply", "-f", "-", given=json.dumps(_run("shared")))
    kubectl.ok("apply", "-f", "-", given=json.dumps(_lease("default", dt.timedelta(hours=1))))
    done = hook()
    assert done.returncode == 0, done.stderr
    assert "runs_left" in done.stderr
    shared = kubectl.get("trun", "shared", "-n", LAB)
    assert shared["spec"]["suspend"] is False
    assert FINALIZER in shared["metadata"]["finalizers"]
    kubectl.ok("delete", "lease", "op", "-n", "default")
    for name in ("theirs", "shared"):
        patch = json.dumps({"metadata": {"finalizers": None}})
        kubectl.ok("patch", "trun", name, "-n", LAB, "--type=merge", "-p", patch)
        kubectl.ok("delete", "trun", name, "-n", LAB)


def _with(spec, **conditions):
    held = [{"type": name, "status": status} for name, status in conditions.items()]
    return {"spec": spec, "status": {"conditions": held}}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"spec": {}}, False),
        (_with({"suspend": True}), False),
        (_with({"suspend": True}, Suspended="False"), False),
        (_with({"suspend": True}, Suspended="True"), True),
        (_with({"suspend": False}, Suspended="True"), False),
        (_with({}, Finished="True"), True),
    ],
)
def test_when_a_run_has_settled(run, expected):
    assert settled(run) is expected


class _Changing:
    """An API server with one run, which somebody changes between our first look and our first write."""

    def __init__(self):
        self.version, self.finalizers = 1, [FINALIZER, "other.dev/one"]

    def items(self, version, plural, namespaces, selector=""):
        held = {"finalizers": list(self.finalizers), "resourceVersion": str(self.version)}
        yield {"metadata": {"namespace": LAB, "name": "a", **held}, "spec": {}}
        self.version = max(self.version, 2)

    def call(self, method, path, body, kind):
        assert method == "PATCH"
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "the object has been modified")
        self.finalizers = body["metadata"]["finalizers"]


def test_a_run_that_is_changed_meanwhile_loses_its_finalizer_all_the_same():
    api = _Changing()
    drop_finalizers(api, [LAB])
    assert api.finalizers == ["other.dev/one"]
