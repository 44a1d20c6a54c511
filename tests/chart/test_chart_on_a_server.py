"""The chart on a real API server: installed into a namespace that enforces Pod Security
`restricted`, tried as its service accounts, upgraded and uninstalled.

Nodes are not needed: that the controllers could create the pods shows that admission took them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.waiting import HANG_OPTION, until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "forkcast"
NAMESPACE = "forkcast-system"
VALUES = {
    "objectStore": {"mode": "Bundled", "bundled": {"persistence": {"enabled": False}}},
    "watchNamespaces": ["lab"],
    # the session's definitions stand already, and another release would not own them
    "crds": {"enabled": False},
    # there is no node to run the hook; see test_uninstall.py
    "uninstall": {"enabled": False},
    "metrics": {
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}


@pytest.fixture(scope="module")
def run_helm(helm, kubectl):
    def run(*arguments):
        return subprocess.run(
            [helm, "-n", NAMESPACE, *arguments],
            env=kubectl.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def installed(kubectl, run_helm, tmp_path_factory):
    """The release `demo`; gives what `helm install` said."""
    path = tmp_path_factory.mktemp("values") / "values.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    for name in (NAMESPACE, "lab"):
        kubectl.ok("create", "namespace", name)
        kubectl.ok("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    done = run_helm("install", "demo", str(CHART), "-f", str(path))
    assert done.returncode == 0, done.stderr
    yield done.stdout
    done = run_helm("uninstall", "demo", "--wait", HANG_OPTION)
    assert done.returncode == 0, done.stderr


def test_notes_are_loud_about_the_development_store(installed):
    assert "DEVELOPMENT STORE" in installed
    assert "IT KEEPS NOTHING" in installed


@pytest.mark.parametrize(
    ("watched", "warned"), [([], True), (["lab", NAMESPACE], True), (["lab"], False)]
)
def test_notes_say_who_can_read_the_secrets_of_the_release(run_helm, watched, warned):
    store = "objectStore.external.endpoint=https://s3.example,objectStore.external.bucket=runs"
    done = run_helm(
        *("install", "noted", str(CHART), "--dry-run=client"),
        *("--set", f"{store},crds.enabled=false"),
        *("--set-json", f"watchNamespaces={json.dumps(watched)}"),
    )
    assert done.returncode == 0, done.stderr
    assert ("namespaces of their own" in done.stdout) is warned


def test_restricted_pods_are_created(installed, kubectl):
    """Pod Security refuses at the ReplicaSet, so a pod that is there was taken."""
    wanted = {"operator", "monitor", "proxy", "store"}

    def there():
        pods = kubectl.get("pods", "-n", NAMESPACE)["items"]
        seen = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in pods}
        return seen == wanted

    until(there, "a pod of each", every=0.2)


OPERATOR = f"system:serviceaccount:{NAMESPACE}:demo-forkcast-operator"
MONITOR = f"system:serviceaccount:{NAMESPACE}:demo-forkcast-monitor"
PROXY = f"system:serviceaccount:{NAMESPACE}:demo-forkcast-proxy"


@pytest.mark.parametrize(
    ("account", "verb", "what", "namespace", "allowed"),
    [
        (OPERATOR, "list", "trainingruns.forkcast.dev", "lab", True),
        (OPERATOR, "patch", "trainingruns/status.forkcast.dev", "lab", True),
        (OPERATOR, "update", "trainingruns/finalizers.forkcast.dev", "lab", True),
        (OPERATOR, "create", "branches.forkcast.dev", "lab", True),
        (OPERATOR, "create", "jobs.batch", "lab", True),
        (OPERATOR, "create", "jobsets.jobset.x-k8s.io", "lab", True),
        (OPERATOR, "create", "events", "lab", True),
        (OPERATOR, "create", "leases.coordination.k8s.io", NAMESPACE, True),
        (OPERATOR, "get", "leases.coordination.k8s.io:demo-forkcast-operator", NAMESPACE, True),
        (OPERATOR, "get", "leases.coordination.k8s.io:another", NAMESPACE, False),
        (OPERATOR, "create", "trainingruns.forkcast.dev", "lab", False),
        (OPERATOR, "list", "trainingruns.forkcast.dev", "default", False),
        (OPERATOR, "get", "secrets", "lab", False),
        (OPERATOR, "list", "secrets", NAMESPACE, False),
        (OPERATOR, "create", "pods", "lab", False),
        (OPERATOR, "create", "pods/exec", "lab", False),
        (OPERATOR, "create", "roles.rbac.authorization.k8s.io", "lab", False),
        (OPERATOR, "create", "serviceaccounts/token", NAMESPACE, False),
        (OPERATOR, "create", "tokenreviews.authentication.k8s.io", "", False),
        (MONITOR, "create", "tokenreviews.authentication.k8s.io", "", True),
        (MONITOR, "get", "trainingruns.forkcast.dev", "lab", False),
        (MONITOR, "list", "secrets", NAMESPACE, False),
        (PROXY, "create", "tokenreviews.authentication.k8s.io", "", True),
        (PROXY, "get", "pods", NAMESPACE, False),
    ],
)
def test_rights_of_the_service_accounts(
    installed, kubectl, account, verb, what, namespace, allowed
):
    """what: resource[/subresource][.group][:name]."""
    path, _, name = what.partition(":")
    kind, _, group = path.partition(".")
    resource, _, subresource = kind.partition("/")
    asked = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": account,
            "resourceAttributes": {
                "verb": verb,
                "group": group,
                "resource": resource,
                "subresource": subresource,
                "namespace": namespace,
                "name": name,
            },
        },
    }
    said = kubectl.ok("create", "-f", "-", "-o", "json", given=json.dumps(asked))
    assert json.loads(said)["status"]["allowed"] is allowed


def test_the_objects_of_prometheus_are_accepted(installed, kubectl):
    assert kubectl.get("servicemonitor", "-n", NAMESPACE)["items"]
    (rule,) = kubectl.get("prometheusrule", "-n", NAMESPACE)["items"]
    assert len(rule["spec"]["groups"]) == 4
    boards = kubectl.get("configmap", "-n", NAMESPACE, "-l", "grafana_dashboard=1")["items"]
    assert len(boards) == 3


@pytest.mark.parametrize(
    ("case", "kinds"),
    [("pod_monitor", {"PodMonitor"}), ("monitored", {"ServiceMonitor", "PrometheusRule"})],
)
def test_what_prometheus_operator_reads_is_accepted(kubectl, render, case, kinds):
    """By the real definitions, which are strict: no field that they do not know."""
    found = {one["kind"]: one for one in render(case) if "coreos.com" in one["apiVersion"]}
    assert found.keys() == kinds
    for body in found.values():
        body["metadata"]["namespace"] = "default"
        done = kubectl.apply(body, "--dry-run=server", "--validate=strict")
        assert done.returncode == 0, done.stderr


def test_an_upgrade_keeps_keys_and_secrets(installed, kubectl, run_helm):
    names = ("demo-forkcast-tls", "demo-forkcast-store")
    before = [kubectl.get("secret", name, "-n", NAMESPACE)["data"] for name in names]
    done = run_helm("upgrade", "demo", str(CHART), "--reuse-values", "--set", "operator.replicas=2")
    assert done.returncode == 0, done.stderr
    after = [kubectl.get("secret", name, "-n", NAMESPACE)["data"] for name in names]
    assert after == before
    copied = kubectl.get("secret", "demo-forkcast-store", "-n", "lab")["data"]
    assert copied == before[1]
    assert kubectl.get("poddisruptionbudget", "-n", NAMESPACE)["items"]


def test_the_certificate_names_the_services(installed, kubectl, tmp_path):
    import base64

    data = kubectl.get("secret", "demo-forkcast-tls", "-n", NAMESPACE)["data"]
    for name in ("ca.crt", "tls.crt"):
        (tmp_path / name).write_bytes(base64.b64decode(data[name]))
    for part in ("monitor", "proxy"):
        done = subprocess.run(
            [
                *("openssl", "verify", "-CAfile", str(tmp_path / "ca.crt")),
                *("-verify_hostname", f"demo-forkcast-{part}.{NAMESPACE}.svc"),
                str(tmp_path / "tls.crt"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_people_are_covered_by_the_built_in_roles(installed, kubectl):
    kubectl.ok("create", "rolebinding", "e", "--clusterrole=edit", "--user=eve", "-n", "lab")
    kubectl.ok("create", "rolebinding", "v", "--clusterrole=view", "--user=vic", "-n", "lab")

    def may(user, verb, kind):
        asked = ("auth", "can-i", verb, f"{kind}.forkcast.dev", f"--as={user}", "-n", "lab")
        return kubectl(*asked).returncode == 0

    # the controller that aggregates the roles takes its time
    until(lambda: may("eve", "create", "trainingruns"), "the role edit", every=0.5)
    until(lambda: may("vic", "list", "branches"), "the role view", every=0.5)
    assert not may("vic", "delete", "trainingruns")
    assert not may("eve", "create", "branches")
