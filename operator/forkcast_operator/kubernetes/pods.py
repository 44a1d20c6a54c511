"""The pods of a run as dicts: what trainer and rollouts have in common.

They pass Pod Security `restricted` and hold no rights in the cluster: no token of the API server
is mounted, credentials of the store come as files from a Secret named by the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import (
    CA_FOLDER,
    DATA_CA_FOLDER,
    DATA_FOLDER,
    STORE_FOLDER,
    Run,
    StorePlace,
    child_name,
)
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.manifest_pods import CaRef, EnvironmentVariable, PodResources
from forkcast_wire.resources import LABEL_COMPONENT, LABEL_RUN

WORKDIR: Final = "/work"
RUN_FOLDER: Final = "/etc/forkcast/run"
_TLS_FOLDER: Final = "/etc/forkcast/tls"
_MONITOR_CA_FOLDER: Final = "/etc/forkcast/monitor-ca"
_TOKEN_FOLDER: Final = "/var/run/secrets/forkcast"
_TOKEN_SECONDS: Final = 3600
#: A SIGTERM ends in a checkpoint; this is what it may take.
GRACE_SECONDS: Final = 60

Document = dict[str, Any]


def labels(run: Run, component: str, **more: str) -> dict[str, str]:
    """The labels of a child."""
    return {
        "app.kubernetes.io/name": "forkcast",
        "app.kubernetes.io/instance": run.name,
        "app.kubernetes.io/managed-by": "forkcast-operator",
        LABEL_COMPONENT: component,
        LABEL_RUN: run.name,
        **more,
    }


def _variable(given: EnvironmentVariable) -> Document:
    """A variable with its value, or where the kubelet finds it."""
    if given.value_from is None:
        return {"name": given.name, "value": given.value}
    return {
        "name": given.name,
        "valueFrom": given.value_from.model_dump(mode="json", by_alias=True),
    }


def pod_template(
    run: Run,
    spec: TrainingRunSpec,
    place: StorePlace,
    config: OperatorConfig,
    *,
    component: str,
    command: list[str],
    env: Mapping[str, str],
    marks: Mapping[str, str],
) -> Document:
    """The template of a pod of ``component`` (trainer or rollout). marks: its labels."""
    patch, rollout = spec.pod_patch, component == "rollout"
    named = (spec.image.rollout if rollout else None) or spec.image.trainer
    image = named or config.trainer.image
    pull_policy = "IfNotPresent" if named else config.trainer.pull_policy
    volumes, mounts = _volumes(run, spec, place, config, component)
    pulls = [ref.name for ref in spec.image.pull_secrets] or config.trainer.pull_secrets
    container: Document = {
        "name": component,
        "image": image,
        "imagePullPolicy": spec.image.pull_policy or pull_policy,
        "command": command,
        "workingDir": WORKDIR,
        "env": [
            {"name": name, "value": value}
            for name, value in {**_environment(spec, config, component), **env}.items()
        ]
        + [_variable(one) for one in patch.env],
        "resources": _resources(rollout_resources(spec) if rollout else spec.resources.per_node),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    pod: Document = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            **_ids(config),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if pulls:
        pod["imagePullSecrets"] = [{"name": name} for name in pulls]
    if patch.node_selector:
        pod["nodeSelector"] = dict(patch.node_selector)
    if patch.affinity is not None:
        pod["affinity"] = patch.affinity.model_dump(mode="json", by_alias=True, exclude_none=True)
    if patch.tolerations:
        pod["tolerations"] = [
            _toleration(one.model_dump(by_alias=True)) for one in patch.tolerations
        ]
    if patch.service_account_name:
        pod["serviceAccountName"] = patch.service_account_name
    if patch.runtime_class_name:
        pod["runtimeClassName"] = patch.runtime_class_name
    priority = spec.scheduling.priority_class_name
    if rollout:
        priority = (
            spec.scheduling.rollout_priority_class_name
            or config.trainer.rollout_priority_class_name
            or None
        )
    if priority:
        pod["priorityClassName"] = priority
    meta: Document = {"labels": {**patch.labels, **marks}}
    if patch.annotations:
        meta["annotations"] = dict(patch.annotations)
    return {"metadata": meta, "spec": pod}


def _ids(config: OperatorConfig) -> dict[str, int]:
    given = config.trainer
    ids = {
        "runAsUser": given.run_as_user,
        "runAsGroup": given.run_as_group,
        "fsGroup": given.fs_group,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _toleration(given: Mapping[str, Any]) -> Document:
    return {name: value for name, value in given.items() if value not in ("", None)}


def _environment(spec: TrainingRunSpec, config: OperatorConfig, component: str) -> dict[str, str]:
    threads = str(spec.training.threads)
    given = {
        "FORKCAST_COMPONENT": component,
        "HOME": WORKDIR,
        "TMPDIR": "/tmp",  # noqa: S108  a volume of the pod's own
        "HF_HOME": f"{WORKDIR}/huggingface",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NCCL_DEBUG": "WARN",
    }
    if config.monitor is None or component != "trainer":
        return given
    if config.monitor.insecure_dev:
        given["FORKCAST_INSECURE_DEV"] = "1"
        return given
    if config.trainer.monitor_ca_config_map:
        given["FORKCAST_TLS_CA"] = f"{_MONITOR_CA_FOLDER}/ca.crt"
    elif config.monitor.tls is not None:
        given["FORKCAST_TLS_CA"] = f"{RUN_FOLDER}/ca.crt"
    if config.trainer.monitor_tls_secret:
        given["FORKCAST_TLS_CERT"] = f"{_TLS_FOLDER}/tls.crt"
        given["FORKCAST_TLS_KEY"] = f"{_TLS_FOLDER}/tls.key"
    else:
        given["FORKCAST_TOKEN_FILE"] = f"{_TOKEN_FOLDER}/token"
    return given


def _volumes(
    run: Run, spec: TrainingRunSpec, place: StorePlace, config: OperatorConfig, component: str
) -> tuple[list[Document], list[Document]]:
    """The volumes and where they are mounted."""
    pairs: list[tuple[Document, Document]] = []

    def add(name: str, source: Document, path: str, *, read_only: bool) -> None:
        mount: Document = {"name": name, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        pairs.append(({"name": name, **source}, mount))

    scratch = {"emptyDir": {"sizeLimit": spec.resources.scratch}}
    add("work", scratch, WORKDIR, read_only=False)
    add("tmp", {"emptyDir": {"sizeLimit": spec.resources.scratch}}, "/tmp", read_only=False)  # noqa: S108
    settings = {"configMap": {"name": child_name(run.name, "run")}}
    add("run", settings, RUN_FOLDER, read_only=True)
    keys = _keys(place.secret, place.access_key_id_key, place.secret_access_key_key)
    add("store", keys, STORE_FOLDER, read_only=True)
    if spec.storage.ca_ref is not None:
        add("store-ca", _authority(spec.storage.ca_ref), CA_FOLDER, read_only=True)
    if (data := spec.data.s3) is not None:
        if data.secret_ref is not None:
            keys = _keys(
                data.secret_ref.name,
                data.secret_ref.access_key_id_key,
                data.secret_ref.secret_access_key_key,
            )
            add("data", keys, DATA_FOLDER, read_only=True)
        if data.ca_ref is not None:
            add("data-ca", _authority(data.ca_ref), DATA_CA_FOLDER, read_only=True)
    if component == "trainer":
        _monitor_volumes(config, add)
    if spec.resources.shared_memory is not None:
        memory = {"emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}}
        add("shm", memory, "/dev/shm", read_only=False)  # noqa: S108
    for number, claim in enumerate(spec.pod_patch.claims):
        source = {"persistentVolumeClaim": {"claimName": claim.claim_name}}
        add(f"claim-{number}", source, claim.mount_path, read_only=claim.read_only)
    return [volume for volume, _ in pairs], [mount for _, mount in pairs]


def _keys(secret: str, access_key_id_key: str, secret_access_key_key: str) -> Document:
    """A volume with the keys of an object store, as `credentialsDir` wants them."""
    items = [
        {"key": access_key_id_key, "path": "accessKeyId"},
        {"key": secret_access_key_key, "path": "secretAccessKey"},
    ]
    return {"secret": {"secretName": secret, "defaultMode": 0o440, "items": items}}


def _authority(ca: CaRef) -> Document:
    items = [{"key": ca.key, "path": "ca.crt"}]
    if ca.kind == "ConfigMap":
        return {"configMap": {"name": ca.name, "items": items}}
    return {"secret": {"secretName": ca.name, "items": items}}


def _monitor_volumes(config: OperatorConfig, add: Callable[..., None]) -> None:
    if config.monitor is None or config.monitor.insecure_dev:
        return
    if name := config.trainer.monitor_ca_config_map:
        add("monitor-ca", {"configMap": {"name": name}}, _MONITOR_CA_FOLDER, read_only=True)
    if secret := config.trainer.monitor_tls_secret:
        source = {"secret": {"secretName": secret, "defaultMode": 0o440}}
        add("monitor-tls", source, _TLS_FOLDER, read_only=True)
        return
    token = {
        "path": "token",
        "audience": config.trainer.token_audience,
        "expirationSeconds": _TOKEN_SECONDS,
    }
    source = {"projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": token}]}}
    add("monitor-token", source, _TOKEN_FOLDER, read_only=True)


def _resources(given: PodResources) -> Document:
    return {
        name: dict(values)
        for name, values in (("requests", given.requests), ("limits", given.limits))
        if values
    }


def rollout_resources(spec: TrainingRunSpec) -> PodResources:
    """What a rollout pod asks for: what the run says, or the trainer's share of one process."""
    if spec.resources.rollout is not None:
        return spec.resources.rollout
    whole, processes = spec.resources.per_node, spec.parallelism.processes_per_node
    return PodResources(
        requests={name: share(name, value, processes) for name, value in whole.requests.items()},
        limits={name: share(name, value, processes) for name, value in whole.limits.items()},
    )


def share(resource: str, quantity: str, processes: int) -> str:
    """One process's part of a quantity: devices whole and at least one, CPU in thousandths, the
    rest in whole units.
    """
    if processes == 1:
        return quantity
    part = Decimal(parse_quantity(quantity)) / processes
    if "/" in resource:
        return str(max(1, int(part)))
    return f"{max(1, int(part * 1000))}m" if resource == "cpu" else str(max(1, int(part)))
