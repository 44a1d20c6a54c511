"""What a run is made of, as dicts: ConfigMap, Service, trainer, Branch, rollout Jobs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forkcast.canonical import canonical_json, digest
from forkcast_operator.kubernetes.branch_status import branch_spec
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.pods import RUN_FOLDER, WORKDIR, Document, labels, pod_template
from forkcast_operator.kubernetes.run import (
    ANNOTATION_PODS,
    ANNOTATION_RETRY,
    LABEL_CANDIDATE,
    LABEL_QUEUE,
    LABEL_RUNG,
    LABEL_START,
    Run,
    StorePlace,
    child_name,
    manifest_json,
    owner_reference,
)
from forkcast_wire.branches import BranchRecord
from forkcast_wire.documents import RunInfo
from forkcast_wire.fields import API_VERSION
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.resources import LABEL_BRANCH

_RENDEZVOUS_PORT: Final = 29400
_REPLICATED: Final = "node"
#: The trainer's exit code for a manifest that cannot be carried out: no use in starting again.
_UNUSABLE: Final = 2
_ROLLOUT_RETRIES: Final = 1
_ROLLOUT_TTL_SECONDS: Final = 600


def trainer_name(run: Run, start: int) -> str:
    """The trainer of one start; another one is another object."""
    return child_name(run.name, "trainer", str(start))


def service_name(run: Run) -> str:
    """The headless Service under which trainer pods find each other."""
    return child_name(run.name, "trainer")


def config_map(
    run: Run, spec: TrainingRunSpec, place: StorePlace, info: RunInfo, monitor_ca: str
) -> Document:
    """What the run's pods read: the resolved manifest, the run's identity, the monitor's CA."""
    data = {
        "manifest.json": manifest_json(run, spec.with_schedule(info.first_total_steps), place),
        "run.json": canonical_json(info).decode(),
    }
    if monitor_ca:
        data["ca.crt"] = monitor_ca
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(run, child_name(run.name, "run"), labels(run, "run")),
        "data": data,
    }


def service(run: Run) -> Document:
    """The headless Service of the rendezvous; unready pods count, they are what waits there."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(run, service_name(run), labels(run, "trainer")),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels(run, "trainer"),
            "ports": [
                {"name": "rendezvous", "port": _RENDEZVOUS_PORT, "targetPort": _RENDEZVOUS_PORT}
            ],
        },
    }


def trainer(
    run: Run,
    spec: TrainingRunSpec,
    place: StorePlace,
    config: OperatorConfig,
    *,
    start: int,
    epoch: int,
    jobset: bool,
    active_seconds: int = 0,
) -> Document:
    """The trainer's workload of one start: a JobSet, or an Indexed Job beside its Service.

    epoch: the lineage epoch now; with it in the rendezvous id, pods of an earlier epoch that come
    late meet nobody. active_seconds: of earlier starts; the run's deadline is for all of them.
    """
    name = trainer_name(run, start)
    first = f"{name}-{_REPLICATED}-0-0.{name}" if jobset else f"{name}-0.{service_name(run)}"
    job: Document = {
        "completionMode": "Indexed",
        "completions": spec.parallelism.nodes,
        "parallelism": spec.parallelism.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [_on_unusable(), _on_disruption()]},
        "template": pod_template(
            run,
            spec,
            place,
            config,
            component="trainer",
            command=_trainer_command(run, spec, config, f"{first}:{_RENDEZVOUS_PORT}", epoch),
            env={},
            marks=labels(run, "trainer"),
        ),
    }
    if limit := spec.lifecycle.active_deadline_seconds:
        job["activeDeadlineSeconds"] = max(1, limit - active_seconds)
    marks = {**labels(run, "trainer"), LABEL_START: str(start)}
    if queue := spec.scheduling.queue_name:
        marks[LABEL_QUEUE] = queue
    metadata = _metadata(run, name, marks)
    metadata["annotations"] = {ANNOTATION_PODS: pods_digest(run, spec, place, config)}
    if run.retry:
        metadata["annotations"][ANNOTATION_RETRY] = run.retry
    if not jobset:
        if spec.parallelism.nodes > 1:
            job["template"]["spec"]["subdomain"] = service_name(run)
        if queue:
            job["suspend"] = True  # the queue lets it go
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job}
    spec_of_set: Document = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": 0},
        "replicatedJobs": [{"name": _REPLICATED, "replicas": 1, "template": {"spec": job}}],
    }
    if queue:
        spec_of_set["suspend"] = True
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": spec_of_set,
    }


def pods_digest(run: Run, spec: TrainingRunSpec, place: StorePlace, config: OperatorConfig) -> str:
    """Of the trainer's pods as they are to be now; their command goes with each start."""
    pods = pod_template(run, spec, place, config, component="trainer", command=[], env={}, marks={})
    return digest(pods)[:16]


def _trainer_command(
    run: Run, spec: TrainingRunSpec, config: OperatorConfig, endpoint: str, epoch: int
) -> list[str]:
    command = ["python", "-m"]
    shape = spec.parallelism
    if shape.processes > 1:
        command += ["forkcast_trainer.launch", f"--nproc-per-node={shape.processes_per_node}"]
        if shape.nodes > 1:
            command += [
                f"--nnodes={shape.nodes}",
                "--rdzv-backend=c10d",
                f"--rdzv-id={run.uid}-{epoch}",
                f"--rdzv-endpoint={endpoint}",
            ]
        else:
            command += ["--standalone"]
        command += ["-m"]
    monitor = ""
    if config.monitor is not None and spec.branching.mode is not Mode.DISABLED:
        monitor = config.monitor.target
    return [
        *command,
        "forkcast_trainer",
        f"--manifest={RUN_FOLDER}/manifest.json",
        f"--run={RUN_FOLDER}/run.json",
        f"--workdir={WORKDIR}",
        f"--monitor={monitor}",
        "--claim-attempt",
    ]


def branch(run: Run, record: BranchRecord, spec: TrainingRunSpec) -> Document:
    """The Branch object of an opened branch; its spec is frozen."""
    marks = labels(run, "branch")
    return {
        "apiVersion": API_VERSION,
        "kind": "Branch",
        "metadata": _metadata(run, record.name, marks),
        "spec": branch_spec(run, record, spec),
    }


def rollout_job(
    run: Run,
    spec: TrainingRunSpec,
    place: StorePlace,
    config: OperatorConfig,
    record: BranchRecord,
    *,
    branch_uid: str,
    candidate: str,
    rung: int,
    seconds_left: int,
    park_seconds: int,
) -> Document:
    """The Job that takes a candidate to ``rung`` and waits there for more, ``park_seconds`` long.

    seconds_left: of the branch; the Job is not active for longer.
    """
    marks = labels(
        run,
        "rollout",
        **{LABEL_BRANCH: record.name, LABEL_CANDIDATE: candidate, LABEL_RUNG: str(rung)},
    )
    queue = spec.scheduling.rollout_queue_name or spec.scheduling.queue_name
    job: Document = {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": _ROLLOUT_RETRIES,
        "activeDeadlineSeconds": max(1, seconds_left),
        "ttlSecondsAfterFinished": _ROLLOUT_TTL_SECONDS,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [_on_unusable(), _on_disruption()]},
        "template": pod_template(
            run,
            spec,
            place,
            config,
            component="rollout",
            command=[
                "python",
                "-m",
                "forkcast_trainer.rollout_job",
                f"--manifest={RUN_FOLDER}/manifest.json",
                f"--workdir={WORKDIR}",
                f"--trigger={record.trigger.id}",
                f"--candidate={candidate}",
                f"--park-seconds={park_seconds}",
            ],
            env={},
            marks=marks,
        ),
    }
    if queue:
        job["suspend"] = True
    metadata = {
        "name": rollout_name(record.name, candidate, rung),
        "namespace": run.namespace,
        "labels": {**marks, **({LABEL_QUEUE: queue} if queue else {})},
        "ownerReferences": [owner_reference("Branch", record.name, branch_uid)],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job}


def rollout_name(branch_name: str, candidate: str, rung: int) -> str:
    """A Job for a candidate at a rung: the same wish is the same name."""
    return child_name(branch_name, candidate, f"r{rung}")


def _on_unusable() -> Document:
    exits = {"operator": "In", "values": [_UNUSABLE]}
    return {"action": "FailJob", "onExitCodes": exits}


def _on_disruption() -> Document:
    """An evicted or preempted pod is no failure: it comes again."""
    return {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _metadata(run: Run, name: str, marks: Mapping[str, str]) -> Document:
    return {
        "name": name,
        "namespace": run.namespace,
        "labels": dict(marks),
        "ownerReferences": [run.owner()],
    }
