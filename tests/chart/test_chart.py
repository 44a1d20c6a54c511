"""The chart as Helm renders it: valid, strict, least privilege, restricted pods."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from .conftest import template
from .values_matrix import BUNDLED, EXTERNAL, MATRIX

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "forkcast"
GOLDEN = Path(__file__).parent / "golden"
VERSION = "1.34.1"
#: Kinds that are not Kubernetes' own; the real definitions judge them on a server.
FOREIGN = ("forkcast.dev/", "monitoring.coreos.com/", "cert-manager.io/")


def _pod_specs(objects):
    for one in objects:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif one["kind"] == "Deployment":
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def _find(objects, kind, suffix):
    return next(
        one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)
    )


@pytest.mark.parametrize("name", ["bundled", "external", "monitored"])
def test_lint(helm, tmp_path, name):
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(MATRIX[name]))
    done = subprocess.run(
        [helm, "lint", "--strict", str(CHART), "-f", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", MATRIX)
def test_every_object_is_valid(render, name):
    objects = render(name)
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(keys)) == len(keys)
    for one in objects:
        if not one["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize("name", MATRIX)
def test_pods_are_restricted(render, name):
    for pod, spec in _pod_specs(render(name)):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, pod
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, container["name"]
            assert inner["readOnlyRootFilesystem"] is True
            assert inner["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]
        allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim", "name"}
        assert {key for volume in spec.get("volumes", []) for key in volume} <= allowed


@pytest.mark.parametrize("name", ["external", "namespaced", "cert_manager_mutual"])
def test_rights_are_the_golden_ones(render, name):
    """A change of rights is a change of tests/chart/golden/: look at it twice."""
    rights = [
        {
            key: one[key]
            for key in ("kind", "metadata", "rules", "roleRef", "subjects")
            if key in one
        }
        for one in render(name)
        if one["apiVersion"].startswith("rbac.authorization.k8s.io/")
    ]
    for one in rights:
        one["metadata"] = {k: v for k, v in one["metadata"].items() if k != "labels"}
    text = yaml.safe_dump_all(rights, sort_keys=False)
    path = GOLDEN / f"rbac-{name}.yaml"
    assert path.exists(), f"no {path.name}; it should be:\n{text}"
    assert text == path.read_text()


@pytest.mark.parametrize("name", MATRIX)
def test_nobody_may_read_secrets_or_everything(render, name):
    for one in render(name):
        for rule in one.get("rules") or [] if "rbac" in one["apiVersion"] else []:
            assert "secrets" not in rule["resources"]
            assert "*" not in [*rule["resources"], *rule["verbs"], *rule["apiGroups"]]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert not {"pods/exec", "roles", "nodes/proxy"} & set(rule["resources"])


def test_a_namespaced_installation_has_no_cluster_wide_rights_on_runs(render):
    for one in render("namespaced"):
        if one["kind"] == "ClusterRole" and "-view" not in one["metadata"]["name"]:
            for rule in one["rules"]:
                harmless = rule["resources"] == ["tokenreviews"] or (
                    rule["resources"] == ["leases"] and rule["verbs"] == ["list"]
                )
                assert harmless or "edit" in one["metadata"]["name"]
    operator = _find(render("namespaced"), "Deployment", "-operator")
    arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--namespace=lab" in arguments
    assert "--namespace=team-b" in arguments


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**BUNDLED, "monitr": {}}, "monitr"),
        ({**BUNDLED, "monitor": {"replicas": 2}}, "replicas"),
        ({"objectStore": {"mode": "bundled"}}, "objectStore.mode"),
        ({**BUNDLED, "operator": {"replicas": 0}}, "operator.replicas"),
        ({**BUNDLED, "operator": {"resources": {"limit": {}}}}, "limit"),
        ({**BUNDLED, "image": {"digest": "sha256:1"}}, "image.digest"),
        ({**BUNDLED, "tls": {"mode": "Off"}}, "tls.mode"),
        ({**BUNDLED, "metrics": {"serviceMonitor": {"interval": "often"}}}, "interval"),
        ({"objectStore": {"external": {"bucket": "b"}}}, "objectStore.external.endpoint: is needed"),
        ({"objectStore": {"external": {"endpoint": "https://s"}}}, "external.bucket: is needed"),
        ({**EXTERNAL, "tls": {"auth": "Mutual"}}, "tls.auth: Mutual needs an authority"),
        ({**EXTERNAL, "tls": {"mode": "Existing"}}, "tls.existingSecret: is needed"),
        ({**EXTERNAL, "tls": {"mode": "CertManager"}}, "tls.issuerRef.name: is needed"),
        ({**EXTERNAL, "metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}, "enable one of them"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(helm, tmp_path, values, said):
    done = template(helm, tmp_path, values)
    assert done.returncode != 0
    assert said in done.stderr


def _keys(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from _keys(inner, f"{path}.{key}")


def _schema_keys(schema, definitions, path=""):
    for one in schema.get("allOf", []):
        yield from _schema_keys(one, definitions, path)
    if "$ref" in schema:
        yield from _schema_keys(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    for key, inner in schema.get("properties", {}).items():
        yield f"{path}.{key}"
        yield from _schema_keys(inner, definitions, f"{path}.{key}")


def test_values_and_their_schema_name_the_same_keys():
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(_schema_keys(schema, schema["definitions"]))
    free = r"\.(requests|limits)\."  # any resource's name
    values = {
        key
        for key in _keys(yaml.safe_load((CHART / "values.yaml").read_text()))
        if not re.search(free, key)
    }
    assert values <= known
    optional = {".global", ".objectStore.external.secretName"}
    assert {
        key for key in known - values if not re.search(r"\.(requests|limits)$", key)
    } <= optional


def test_the_operator_is_told_where_everything_is(render):
    objects = render("external_with_authority_and_more_stores")
    config = yaml.safe_load(_find(objects, "ConfigMap", "-operator")["data"]["operator.yaml"])
    assert config["monitor"]["target"] == "demo-forkcast-monitor.forkcast-system.svc:50051"
    first, second = config["stores"]
    assert first["caFile"] == "/etc/forkcast/store-ca/0/ca.crt"
    assert first["conditionalWrites"] == "Off"  # a text, where YAML 1.1 reads a bool
    assert second["endpoint"] == "https://other.example.org"
    assert second["credentialsDir"] == "/etc/forkcast/stores/1"
    assert first["prefix"] == "forkcast/prod/"
    pod = dict(_pod_specs(objects))["demo-forkcast-operator"]
    mounts = {one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert {
        "/etc/forkcast/stores/0",
        "/etc/forkcast/stores/1",
        "/etc/forkcast/store-ca/0",
    } <= mounts
    names = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} == names


@pytest.mark.parametrize("name", MATRIX)
def test_two_releases_share_no_object_but_the_definitions(helm, render, tmp_path, name):
    done = template(helm, tmp_path, MATRIX[name], namespace="elsewhere")
    assert done.returncode == 0, done.stderr
    there = [one for one in yaml.safe_load_all(done.stdout) if one]

    def cluster_scoped(objects):
        kinds = ("ClusterRole", "ClusterRoleBinding", "PriorityClass")
        return {(one["kind"], one["metadata"]["name"]) for one in objects if one["kind"] in kinds}

    assert not cluster_scoped(render(name)) & cluster_scoped(there)


@pytest.mark.parametrize("name", MATRIX)
def test_every_account_whose_token_is_taken_is_reserved(render, name):
    """Of the pods that ask who somebody is, or are asked: none of their accounts is a run's."""
    objects = render(name)
    maps = [one["data"] for one in objects if one["kind"] == "ConfigMap" and "data" in one]
    (text,) = (one["operator.yaml"] for one in maps if "operator.yaml" in one)
    config = yaml.safe_load(text)
    reserved = set(config.get("reservedAccounts", ()))
    if "tokenFile" not in config["monitor"]:
        assert not reserved
        return
    for pod, spec in _pod_specs(objects):
        if not pod.endswith(("-store", "-test")) and "serviceAccountName" in spec:
            assert f"forkcast-system/{spec['serviceAccountName']}" in reserved, pod
    (monitor,) = (spec for pod, spec in _pod_specs(objects) if pod.endswith("-monitor"))
    arguments = monitor["containers"][0]["args"]
    operators = {one.partition("=")[2] for one in arguments if one.startswith("--operator=")}
    assert operators <= reserved


@pytest.mark.parametrize("name", MATRIX)
def test_mounts_and_volumes_agree(render, name):
    for pod, spec in _pod_specs(render(name)):
        volumes = {one["name"] for one in spec.get("volumes", [])}
        used = {
            mount["name"]
            for container in [*spec["containers"], *spec.get("initContainers", [])]
            for mount in container.get("volumeMounts", [])
        }
        assert used == volumes, pod


@pytest.mark.parametrize("name", MATRIX)
def test_services_reach_pods(render, name):
    pods = [
        (one["spec"]["template"]["metadata"]["labels"], one["spec"]["template"]["spec"])
        for one in render(name)
        if one["kind"] == "Deployment"
    ]
    for service in (one for one in render(name) if one["kind"] == "Service"):
        selector = service["spec"]["selector"]
        chosen = [spec for labels, spec in pods if selector.items() <= labels.items()]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {p["name"] for c in chosen[0]["containers"] for p in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_plain_text_says_so_and_asks_nobody(render):
    monitor = dict(_pod_specs(render("plain_text")))["demo-forkcast-monitor"]
    assert "--insecure-dev" in monitor["containers"][0]["args"]
    assert monitor["automountServiceAccountToken"] is False
    assert not [o for o in render("plain_text") if o["metadata"]["name"].endswith("-tokens")]


def test_alerts_point_at_their_runbooks(render):
    rule = _find(render("monitored"), "PrometheusRule", "forkcast")
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    assert "ForkcastUnstable" not in {one["alert"] for one in alerts}
    for one in alerts:
        assert one["annotations"]["runbook_url"].endswith(f"/{one['alert']}.md")
        assert one["labels"]["team"] == "ml"
        assert one["labels"]["severity"] in ("critical", "warning", "info")


def test_dashboards_are_found_by_the_sidecar(render):
    found = [o for o in render("monitored") if "-dashboard-" in o["metadata"]["name"]]
    assert len(found) == len(list((CHART / "files" / "dashboards").glob("*.json")))
    for one in found:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["namespace"] == "grafana"
        ((name, text),) = one["data"].items()
        assert name.endswith(".json")
        assert json.loads(text)["uid"].startswith("forkcast-")


def test_definitions_stay_when_they_should(render):
    kept = [o for o in render("external") if o["kind"] == "CustomResourceDefinition"]
    assert {o["metadata"]["annotations"]["helm.sh/resource-policy"] for o in kept} == {"keep"}
    assert not [o for o in render("bare") if o["kind"] == "CustomResourceDefinition"]


def test_artifact_hub_reads_the_annotations():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    notes = chart["annotations"]
    for name in ("crds", "crdsExamples", "images", "changes"):
        assert yaml.safe_load(notes[f"artifacthub.io/{name}"])
    assert {one["name"] for one in yaml.safe_load(notes["artifacthub.io/crds"])} == {
        path.stem for path in (CHART / "files" / "crds").glob("*.yaml")
    }
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in pyproject
