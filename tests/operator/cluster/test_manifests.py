"""What a run is made of, as values: valid for Kubernetes, restricted, and named the same each time."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest

from forkcast_operator.kubernetes import manifests
from forkcast_operator.kubernetes.pods import rollout_resources, share
from forkcast_operator.kubernetes.run import SpecError, check_executor, child_name, store_place
from forkcast_wire.documents import RunInfo
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.resources import BranchSpec

_KUBERNETES = "1.34"
UID = "075a10ff-1f5a-48a3-9968-60e178b53fc8"
SHAPES = {
    "one process": {},
    "one node of four GPUs": {
        "parallelism": {"processesPerNode": 4},
        "resources": {"perNode": {"limits": {"nvidia.com/gpu": 4}}, "sharedMemory": "16Gi"},
    },
    "two nodes in a queue": {
        "parallelism": {"nodes": 2, "processesPerNode": 8},
        "scheduling": {"queueName": "gpu", "rolloutQueueName": "spot"},
    },
    "everything set": {
        "storage": {
            "endpoint": "https://s3.example",
            "bucket": "runs",
            "prefix": "mine/",
            "secretRef": {"name": "mine", "accessKeyIdKey": "id", "secretAccessKeyKey": "key"},
            "caRef": {"name": "ca"},
        },
        "image": {"trainer": "t:1", "rollout": "r:1", "pullSecrets": [{"name": "reg"}]},
        "podPatch": {
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "serviceAccountName": "sa",
            "runtimeClassName": "nvidia",
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "gpu", "operator": "In", "values": ["h100"]}
                                ]
                            }
                        ]
                    },
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 5,
                            "preference": {
                                "matchExpressions": [{"key": "spot", "operator": "Exists"}]
                            },
                        }
                    ],
                }
            },
            "env": [
                {"name": "X", "value": "1"},
                {
                    "name": "HF_TOKEN",
                    "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
                },
            ],
            "claims": [{"claimName": "text", "mountPath": "/text"}],
            "labels": {"team": "x"},
            "annotations": {"n": "v"},
        },
        "scheduling": {"priorityClassName": "high", "rolloutPriorityClassName": "lower"},
        "lifecycle": {"activeDeadlineSeconds": 60},
    },
}


@pytest.fixture
def children(config, record, make_run):
    def make(shape, *, jobset=False):
        return _children(config, record, make_run(**shape), jobset=jobset)

    return make


def _children(config, record, run, *, jobset):
    spec = run.parsed()
    place = store_place(run, spec, config)
    info = RunInfo(uid=UID, name="gpt", manifest_digest="0")
    return {
        "config": manifests.config_map(run, spec, place, info, "PEM"),
        "service": manifests.service(run),
        "trainer": manifests.trainer(run, spec, place, config, start=0, epoch=2, jobset=jobset),
        "rollout": manifests.rollout_job(
            run,
            spec,
            place,
            config,
            record,
            branch_uid="u",
            candidate="c007",
            rung=25,
            seconds_left=900,
            park_seconds=0,
        ),
    }


def pods(objects):
    for body in objects.values():
        spec = body.get("spec", {})
        if body["kind"] == "JobSet":
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        if "template" in spec:
            yield spec["template"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_object_is_valid_strictly(children, shape) -> None:
    for body in children(shape).values():
        kubernetes_validate.validate(body, _KUBERNETES, strict=True)


@pytest.mark.parametrize("jobset", [False, True], ids=["Job", "JobSet"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_pod_is_restricted_and_holds_no_rights(children, shape, jobset) -> None:
    for template in pods(children(shape, jobset=jobset)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not [
                one for one in container["env"] if "KEY" in one["name"] and "TLS" not in one["name"]
            ]
        allowed = {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}
        assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])


def test_only_the_trainer_has_a_token_and_it_is_for_the_monitor(children) -> None:
    trainer, rollout = pods(children({}))
    sources = [v["projected"]["sources"] for v in trainer["spec"]["volumes"] if "projected" in v]
    (source,) = sources[0]
    assert source["serviceAccountToken"]["audience"] == "forkcast-monitor"
    env = {one["name"]: one["value"] for one in trainer["spec"]["containers"][0]["env"]}
    assert env["FORKCAST_TLS_CA"] == "/etc/forkcast/run/ca.crt"
    assert not any("projected" in volume for volume in rollout["spec"]["volumes"])


def test_rollouts_are_less_important_and_belong_to_their_branch(children, record) -> None:
    made = children(SHAPES["two nodes in a queue"])["rollout"]
    assert made["metadata"]["name"] == "gpt-e0-t288-c007-r25"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "spot"
    assert made["spec"]["suspend"] is True
    assert made["spec"]["template"]["spec"]["priorityClassName"] == "low"
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("Branch", record.name, True)
    assert made["spec"]["activeDeadlineSeconds"] == 900
    assert made["spec"]["ttlSecondsAfterFinished"]


@pytest.mark.parametrize(
    ("jobset", "endpoint"),
    [
        (False, "gpt-trainer-0-0.gpt-trainer:29400"),
        (True, "gpt-trainer-0-node-0-0.gpt-trainer-0:29400"),
    ],
)
def test_the_rendezvous_names_the_epoch_and_its_first_pod(children, jobset, endpoint) -> None:
    shape = SHAPES["two nodes in a queue"]
    made = children(shape, jobset=jobset)["trainer"]
    (template,) = pods({"trainer": made})
    command = template["spec"]["containers"][0]["command"]
    assert f"--rdzv-id={UID}-2" in command
    assert f"--rdzv-endpoint={endpoint}" in command
    if not jobset:
        assert template["spec"]["subdomain"] == "gpt-trainer"


def test_pods_read_the_manifest_with_the_store_as_they_see_it(children) -> None:
    text = children(SHAPES["everything set"])["config"]["data"]["manifest.json"]
    manifest = TrainingRun.model_validate(json.loads(text))
    assert manifest.spec.storage.prefix == "ml/gpt-075a10ff/mine/"
    assert manifest.spec.storage.credentials_dir == "/etc/forkcast/store"
    assert manifest.spec.storage.ca_file == "/etc/forkcast/store-ca/ca.crt"


@pytest.mark.parametrize("own", [True, False])
def test_the_keys_of_the_data_are_mounted_where_the_manifest_says(children, own) -> None:
    refs = {
        "secretRef": {"name": "texts", "accessKeyIdKey": "id", "secretAccessKeyKey": "key"},
        "caRef": {"name": "authority"},
    }
    access = {"endpoint": "https://data.example.org", "credentialsDir": "/x", "caFile": "/y"}
    shape = {"data": {"train": {"uri": "s3://texts/c4"}, "s3": access | (refs if own else {})}}
    made = children(shape)
    found = TrainingRun.model_validate(json.loads(made["config"]["data"]["manifest.json"])).spec
    assert found.data.s3.credentials_dir == ("/etc/forkcast/data" if own else None)
    assert found.data.s3.ca_file == ("/etc/forkcast/data-ca/ca.crt" if own else None)
    for name in ("trainer", "rollout"):
        pod = made[name]["spec"]["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        assert mounts.get("data") == ("/etc/forkcast/data" if own else None)
        if own:
            assert volumes["data"]["secret"] == {
                "secretName": "texts",
                "defaultMode": 0o440,
                "items": [
                    {"key": "id", "path": "accessKeyId"},
                    {"key": "key", "path": "secretAccessKey"},
                ],
            }
            assert volumes["data-ca"]["configMap"]["name"] == "authority"


def test_a_run_without_a_prefix_gets_a_place_of_its_own(config, make_run) -> None:
    run = make_run()
    assert store_place(run, run.parsed(), config).pods.prefix == "ml/gpt-075a10ff/"


def test_a_store_without_credentials_is_refused(config, make_run) -> None:
    run = make_run(storage={"endpoint": "https://other", "bucket": "runs"})
    with pytest.raises(SpecError, match="no credentials for https://other runs"):
        store_place(run, run.parsed(), config)


def test_the_branch_object_holds_the_branch_as_opened(record, make_run) -> None:
    run = make_run()
    body = manifests.branch(run, record, run.parsed())
    spec = BranchSpec.model_validate(body["spec"])
    assert spec.trigger.step == 288
    assert spec.run_ref.uid == UID
    assert body["metadata"]["ownerReferences"][0]["kind"] == "TrainingRun"


def test_a_rollout_asks_for_one_process_of_the_trainer(make_run) -> None:
    run = make_run(**SHAPES["one node of four GPUs"])
    assert rollout_resources(run.parsed()).limits == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize(
    ("resource", "quantity", "expected"),
    [
        ("nvidia.com/gpu", "2", "1"),
        ("cpu", "6", "1500m"),
        ("cpu", "500m", "125m"),
        ("memory", "64Gi", str(16 << 30)),
    ],
)
def test_a_share_of_four(resource, quantity, expected) -> None:
    assert share(resource, quantity, 4) == expected


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "x" * 40
    names = {child_name(long, f"e{n}-t100000000", "control", "r200") for n in range(9)}
    assert len(names) == 9
    assert max(map(len, names)) <= 52
    assert child_name("a", "b") == "a-b"


def _image_of(document):
    (container,) = document["spec"]["template"]["spec"]["containers"]
    return container["image"], container["imagePullPolicy"]


@pytest.mark.parametrize(
    ("given", "trainer", "rollout"),
    [
        ({}, ("forkcast/trainer:1", "Never"), ("forkcast/trainer:1", "Never")),
        ({"rollout": "r:1"}, ("forkcast/trainer:1", "Never"), ("r:1", "IfNotPresent")),
        (
            {"rollout": "r:1", "pullPolicy": "Always"},
            ("forkcast/trainer:1", "Always"),
            ("r:1", "Always"),
        ),
        ({"trainer": "t:1"}, ("t:1", "IfNotPresent"), ("t:1", "IfNotPresent")),
    ],
)
def test_images_are_pulled_as_the_run_says(
    config, record, make_run, given, trainer, rollout
) -> None:
    defaults = config.trainer.model_copy(update={"pull_policy": "Never"})
    config = config.model_copy(update={"trainer": defaults})
    made = _children(config, record, make_run(image=given), jobset=False)
    assert _image_of(made["trainer"]) == trainer
    assert _image_of(made["rollout"]) == rollout


def test_a_runs_region_and_conditional_writes_act(config, make_run) -> None:
    store = {"endpoint": "https://s3.example", "bucket": "runs"}
    asked = make_run(storage={**store, "region": "eu-west-9", "conditionalWrites": "Required"})
    place = store_place(asked, asked.parsed(), config)
    for one in (place.operator, place.pods):
        assert (one.region, one.conditional_writes) == ("eu-west-9", "Required")
    stores = [config.stores[0].model_copy(update={"region": "eu-1", "conditional_writes": "Off"})]
    config = config.model_copy(update={"stores": stores})
    plain = make_run(storage={**store, "region": "us-east-1", "conditionalWrites": "Auto"})
    place = store_place(plain, plain.parsed(), config)
    assert (place.pods.region, place.pods.conditional_writes) == ("eu-1", "Off")


def test_rollouts_as_processes_are_refused_by_name(make_run) -> None:
    with pytest.raises(SpecError, match=r"spec\.branching\.executor: Process"):
        check_executor(make_run(branching={"executor": "Process"}).parsed())
    check_executor(make_run().parsed())


def test_a_later_start_has_what_is_left_of_the_runs_deadline(config, make_run) -> None:
    run = make_run(lifecycle={"activeDeadlineSeconds": 100})
    spec = run.parsed()
    place = store_place(run, spec, config)
    for jobset, active, left in ((False, 0, 100), (False, 70, 30), (True, 70, 30)):
        made = manifests.trainer(
            run, spec, place, config, start=1, epoch=0, jobset=jobset, active_seconds=active
        )
        job = made["spec"]["replicatedJobs"][0]["template"] if jobset else made
        assert job["spec"]["activeDeadlineSeconds"] == left


def test_the_literal_preset_has_no_confirm_rung(make_run) -> None:
    literal = {"acceptance": {"preset": "Literal"}}
    with pytest.raises(SpecError, match=r"confirm\.steps"):
        make_run(branching=literal).parsed()
    make_run(branching={**literal, "confirm": {"steps": 0}}).parsed()


def test_secrets_and_affinity_reach_the_pods_as_they_are_given(children):
    patch = SHAPES["everything set"]["podPatch"]
    for name in ("trainer", "rollout"):
        pod = children(SHAPES["everything set"])[name]["spec"]["template"]["spec"]
        assert pod["affinity"]["nodeAffinity"] == {
            **patch["affinity"]["nodeAffinity"],
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}
                ]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 5,
                    "preference": {
                        "matchExpressions": [{"key": "spot", "operator": "Exists", "values": []}]
                    },
                }
            ],
        }
        variables = {one["name"]: one for one in pod["containers"][0]["env"]}
        assert variables["X"] == {"name": "X", "value": "1"}
        assert variables["HF_TOKEN"] == {
            "name": "HF_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": False}},
        }


def test_ids_of_the_pods_are_the_installations_or_left_to_the_cluster(
    config, record, make_run
) -> None:
    made = _children(config, record, make_run(), jobset=False)
    security = made["trainer"]["spec"]["template"]["spec"]["securityContext"]
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 65532
    none = {"run_as_user": None, "run_as_group": None, "fs_group": None}
    bare = config.model_copy(update={"trainer": config.trainer.model_copy(update=none)})
    for one in ("trainer", "rollout"):
        pod = _children(bare, record, make_run(), jobset=False)[one]["spec"]["template"]["spec"]
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
