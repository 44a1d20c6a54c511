"""What a manifest says about pods and Kubernetes would refuse is refused with the manifest; asked is
a real API server, field by field, with Jobs that no check of ours has seen.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
from typing import Any

import pytest
from pydantic import ValidationError

from forkcast_operator.kubernetes import manifests
from forkcast_operator.kubernetes.pods import WORKDIR
from forkcast_operator.kubernetes.run import store_place
from forkcast_wire.manifest import PodPatch, Scheduling

KEYS = [
    *("a", "a.b/c", "A/b", "a b", "a/b/c", "/a", "a/", "", "-a", "a-", "_", "!", "A.b_c", "é"),
    *("a..b/c", "a_b/c", "a.b-/c", "a" * 63, "a" * 64, "x" * 253 + "/a", "x" * 254 + "/a"),
    *("x" * 250 + "/" + "a" * 63, "x.y/" + "a" * 64, "1.2/3", "a\nb"),
]
VALUES = ["", "a", "a b", "-a", "a_", "A.b", "a" * 63, "a" * 64, "a/b"]
PATHS = ["/d", "/d:e", "d", "/d/", WORKDIR, "/tmp", "/etc/forkcast/run", f"{WORKDIR}/more"]


def _expression(key: str) -> dict[str, Any]:
    terms = [{"matchExpressions": [{"key": key, "operator": "Exists"}]}]
    required = {"nodeSelectorTerms": terms}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _from_secret(key: str) -> dict[str, Any]:
    return {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": key}}}


PATCHES: list[dict[str, Any]] = [
    *({field: {key: "v"}} for field in ("labels", "annotations", "nodeSelector") for key in KEYS),
    *({field: {"a": value}} for field in ("labels", "nodeSelector") for value in VALUES),
    *({"affinity": _expression(key)} for key in KEYS),
    *({"tolerations": [{"key": key, "operator": "Exists"}]} for key in KEYS),
    *({"tolerations": [{"key": "a", "value": value}]} for value in VALUES),
    *(
        {"tolerations": [{"operator": "Exists", "effect": effect, "tolerationSeconds": 5}]}
        for effect in ("", "NoSchedule", "NoExecute")
    ),
    *({"env": [_from_secret(key)]} for key in ("a", ".a", ".", "..", "..a", "a..", "a b", "a/b")),
    *({"claims": [{"claimName": "a", "mountPath": path}]} for path in PATHS),
    {"claims": [{"claimName": name, "mountPath": "/d"} for name in "ab"]},
    {"claims": [{"claimName": name, "mountPath": f"/{name}"} for name in "ab"]},
    *({"queueName": name} for name in ("q", "q" * 63, "q" * 64, "Q", "q.r")),
]
#: What Kubernetes takes and a manifest does not: paths that no container runtime mounts; a queue's
#: name is an object's.
STRICTER = [
    {"queueName": "Q"},
    *({"claims": [{"claimName": "a", "mountPath": path}]} for path in ("d", "/d:e")),
]


def _ours(patch: dict[str, Any]) -> bool:
    model = Scheduling if "queueName" in patch else PodPatch
    try:
        model.model_validate(patch)
    except ValidationError:
        return False
    return True


def _with(job: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The Job with the patch in its pods as it stands."""
    made = copy.deepcopy(job)
    template = made["spec"]["template"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    template["metadata"]["labels"] |= patch.get("labels", {})
    template["metadata"]["annotations"] = patch.get("annotations", {})
    pod |= {name: patch[name] for name in ("nodeSelector", "affinity") if name in patch}
    pod["tolerations"] = [
        {name: value for name, value in one.items() if value != ""}
        for one in patch.get("tolerations", [])
    ]
    container["env"] += patch.get("env", [])
    for number, claim in enumerate(patch.get("claims", [])):
        source = {"persistentVolumeClaim": {"claimName": claim["claimName"]}}
        pod["volumes"].append({"name": f"c{number}", **source})
        container["volumeMounts"].append({"name": f"c{number}", "mountPath": claim["mountPath"]})
    if "queueName" in patch:
        made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = patch["queueName"]
    return made


@pytest.fixture
def refused(api_server, config, make_run) -> dict[str, str]:
    """By the number of the patch: what the server said of those that it refused."""
    run = make_run()
    spec = run.parsed()
    place = store_place(run, spec, config)
    job = manifests.trainer(run, spec, place, config, start=0, epoch=0, jobset=False)
    del job["metadata"]["ownerReferences"]
    job["metadata"]["namespace"] = "default"
    jobs = []
    for number, patch in enumerate(PATCHES):
        jobs.append(_with(job, patch))
        jobs[-1]["metadata"]["name"] = f"n{number}"
    command = ["kubectl", "create", "--dry-run=server", "--validate=false", "-f", "-"]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": jobs})
    done = subprocess.run(
        command, env=api_server, input=document, capture_output=True, text=True, check=False
    )
    taken = set(re.findall(r"job.batch/n(\d+) created", done.stdout))
    said = dict(re.findall(r'"n(\d+)" is invalid: ?(.*)', done.stderr))
    assert taken | set(said) == {str(number) for number in range(len(PATCHES))}, done.stderr
    assert taken
    return said


def test_a_manifest_is_refused_exactly_if_its_pods_would_be(refused) -> None:
    differing = [
        (patch, refused.get(str(number), "taken"))
        for number, patch in enumerate(PATCHES)
        if _ours(patch) == (str(number) in refused) and patch not in STRICTER
    ]
    assert not differing
    assert not any(_ours(patch) for patch in STRICTER)
