"""What the cluster shows of a run's workloads, read from their objects. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from forkcast_operator.kubernetes.run import (
    ANNOTATION_PODS,
    ANNOTATION_RETRY,
    LABEL_CANDIDATE,
    LABEL_QUEUE,
    LABEL_RUNG,
    LABEL_START,
)
from forkcast_wire.last_words import heard
from forkcast_wire.resources import LABEL_BRANCH, LABEL_COMPONENT

Body = Mapping[str, Any]
#: The scheduler's words for a node that lacks what a pod requests.
_LACKING: Final = re.compile(r"Insufficient ([\w./-]*\w)")
_TOO_MANY: Final = "Too many pods"
#: A place for one more pod, beside the resources that pods request.
PLACES: Final = "pods"
#: The Job controller's label on a pod: its Job.
LABEL_JOB: Final = "batch.kubernetes.io/job-name"
_LABEL_JOBSET: Final = "jobset.sigs.k8s.io/jobset-name"
#: Of a pod that its node, the scheduler or whoever drains the node has ended; not of one that has
#: gone beyond a limit of its own.
_DISRUPTED: Final = "DisruptionTarget"
#: Volumes that a pod may overfill, and the field that sizes them.
_SIZED_BY: Final = {"work": "scratch", "tmp": "scratch", "shm": "sharedMemory"}
_OVERFULL: Final = re.compile(r'EmptyDir volume "(\w+)" exceeds the limit')


class Work(Enum):
    """How a workload stands. QUEUED: held back by its queue."""

    QUEUED = "Queued"
    ACTIVE = "Active"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    GOING = "Going"

    @property
    def alive(self) -> bool:
        """Whether it runs, will run, or has not gone yet."""
        return self in (Work.QUEUED, Work.ACTIVE, Work.GOING)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """A rollout's Job. reason, message: of its failure. queue: the name of the queue that it waits
    in, "" for none. short: it cannot run for lack of room in the cluster, or in its queue. holds: the
    resources it requests, empty if that is left to the namespace. pressed: something else in the
    cluster waits for what it holds.
    """

    name: str
    branch: str
    candidate: str
    rung: int
    work: Work
    reason: str = ""
    message: str = ""
    queue: str = ""
    created: dt.datetime | None = None
    short: bool = False
    holds: frozenset[str] = frozenset()
    pressed: bool = False

    @property
    def admitted(self) -> bool:
        """Whether it may run, or has run."""
        return self.work in (Work.ACTIVE, Work.SUCCEEDED, Work.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSeen:
    """The trainer's workload of one start. started_at: when its pods were let go; ended_at: when it succeeded, failed or was deleted.
    retry: the value of the run's annotation that it answers. pods_digest: of its pods as it was made.
    """

    kind: str
    name: str
    start: int
    work: Work
    wanted: int
    reason: str = ""
    message: str = ""
    created: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    retry: str = ""
    pods_digest: str = ""
    started_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A pod. waiting: why its container does not run, "" where nothing is wrong.
    lacking: the resources of which the scheduler finds too little for it. mounting: it has a node and no container yet. ready: one that is leaving is not. ready_at: since
    when. lost: the node does not answer, and what runs there is not known.
    """

    name: str
    created: dt.datetime | None
    mounting: bool
    ready: bool
    scheduled: bool
    waiting: str = ""
    message: str = ""
    lacking: frozenset[str] = frozenset()
    node: str = ""
    lost: bool = False
    ready_at: dt.datetime | None = None
    leaving: bool = False

    @property
    def short(self) -> bool:
        """Whether the scheduler finds no room for it."""
        return bool(self.lacking)


def condition(body: Body, kind: str) -> Body | None:
    """The condition of that type, where it is True."""
    for one in body.get("status", {}).get("conditions", ()):
        if one.get("type") == kind and one.get("status") == "True":
            found: Body = one
            return found
    return None


def instant(text: str | None) -> dt.datetime | None:
    """An API time."""
    return dt.datetime.fromisoformat(text) if text else None


def _work(body: Body) -> tuple[Work, Body]:
    if "deletionTimestamp" in body["metadata"]:
        return Work.GOING, {}
    if (failed := condition(body, "Failed")) is not None:
        return Work.FAILED, failed
    complete = condition(body, "Complete") or condition(body, "Completed")
    if complete is not None:
        return Work.SUCCEEDED, complete
    return (Work.QUEUED if body.get("spec", {}).get("suspend") else Work.ACTIVE), {}


def job_seen(body: Body) -> JobSeen | None:
    """A rollout's Job; None for another's."""
    marks = body["metadata"].get("labels", {})
    if marks.get(LABEL_COMPONENT) != "rollout" or LABEL_CANDIDATE not in marks:
        return None
    work, why = _work(body)
    return JobSeen(
        name=body["metadata"]["name"],
        branch=marks.get(LABEL_BRANCH, ""),
        candidate=marks[LABEL_CANDIDATE],
        rung=int(marks.get(LABEL_RUNG, 0)),
        work=work,
        reason=why.get("reason", ""),
        message=why.get("message", ""),
        queue=marks.get(LABEL_QUEUE, ""),
        created=instant(body["metadata"].get("creationTimestamp")),
        holds=_holds(body),
    )


def _holds(body: Body) -> frozenset[str]:
    pod = body.get("spec", {}).get("template", {}).get("spec", {})
    given = [one.get("resources", {}) for one in pod.get("containers", ())]
    return frozenset(
        name for one in given for part in ("requests", "limits") for name in one.get(part, ())
    )


def trainer_seen(bodies: Iterable[Body]) -> TrainerSeen | None:
    """The trainer's newest start among Jobs and JobSets; a JobSet's own Jobs are not starts."""
    found = []
    for body in bodies:
        marks = body["metadata"].get("labels", {})
        if marks.get(LABEL_COMPONENT) != "trainer" or LABEL_START not in marks:
            continue
        work, why = _work(body)
        found.append(
            TrainerSeen(
                kind=body["kind"],
                name=body["metadata"]["name"],
                start=int(marks[LABEL_START]),
                work=work,
                wanted=_wanted(body),
                reason=why.get("reason", ""),
                message=why.get("message", ""),
                created=instant(body["metadata"].get("creationTimestamp")),
                pods_digest=body["metadata"].get("annotations", {}).get(ANNOTATION_PODS, ""),
                started_at=instant(_started(body)),
                ended_at=instant(
                    why.get("lastTransitionTime") or body["metadata"].get("deletionTimestamp")
                ),
                retry=body["metadata"].get("annotations", {}).get(ANNOTATION_RETRY, ""),
            )
        )
    return max(found, key=lambda one: (one.start, one.work.alive), default=None)


def _started(body: Body) -> str | None:
    """A JobSet has no such time; its pods are let go when it is made, or by its queue."""
    made: str | None = body["metadata"].get("creationTimestamp")
    return made if body["kind"] == "JobSet" else body.get("status", {}).get("startTime")


def _wanted(body: Body) -> int:
    spec = body.get("spec", {})
    if body["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return int(spec.get("parallelism", 1))


def runs_or_will(body: Body) -> bool:
    """Whether a pod has not ended."""
    return body.get("status", {}).get("phase") in (None, "Pending", "Running")


def pod_seen(body: Body) -> PodSeen:
    """A pod of a trainer or of a rollout."""
    status = body.get("status", {})
    waiting, message = "", ""
    for container in status.get("containerStatuses", ()):
        if held := container.get("state", {}).get("waiting"):
            waiting, message = held.get("reason", ""), held.get("message", "")
    scheduled = False
    for one in status.get("conditions", ()):
        if one.get("type") == "PodScheduled":
            scheduled = one.get("status") == "True"
            if not scheduled and one.get("reason") == "Unschedulable":
                waiting, message = "Unschedulable", one.get("message", "")
    leaving = "deletionTimestamp" in body["metadata"]
    ready = None if leaving else condition(body, "Ready")
    mounting = scheduled and waiting in ("", "ContainerCreating", "PodInitializing")
    running = any("running" in one.get("state", {}) for one in status.get("containerStatuses", ()))
    return PodSeen(
        name=body["metadata"]["name"],
        created=instant(body["metadata"].get("creationTimestamp")),
        mounting=mounting and not running,
        ready=ready is not None,
        ready_at=instant(ready.get("lastTransitionTime")) if ready else None,
        scheduled=scheduled,
        waiting="" if waiting in ("ContainerCreating", "PodInitializing") else waiting,
        message=message,
        lacking=_lacking(message) if waiting == "Unschedulable" else frozenset(),
        node=body.get("spec", {}).get("nodeName", ""),
        lost=_lost(body),
        leaving=leaving,
    )


def _lacking(message: str) -> frozenset[str]:
    found = _LACKING.findall(message)
    return frozenset([*found, PLACES] if _TOO_MANY in message else found)


def _lost(body: Body) -> bool:
    """A kubelet calls a pod whose containers are ready Ready, too. Where the two differ, the node's
    controller has taken Ready away, and it does that when it no longer hears from the node.
    """
    if body.get("status", {}).get("phase") != "Running" or condition(body, "Ready"):
        return False
    return condition(body, "ContainersReady") is not None


def disrupted(pods: Iterable[Body], workload: str) -> bool:
    """Whether a pod of the workload was evicted for its node's sake, preempted, or drained away."""
    return any(
        condition(pod, _DISRUPTED) is not None
        for pod in pods
        if workload
        in (
            pod["metadata"].get("labels", {}).get(LABEL_JOB),
            pod["metadata"].get("labels", {}).get(_LABEL_JOBSET),
        )
    )


def last_words(pods: Iterable[Body]) -> str:
    """Why the newest failed pod ended: the kubelet's words if it was the kubelet, else what its
    container said last, with the exit code; "" for none.
    """
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    failed.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    for pod in reversed(failed):
        if reason := pod["status"].get("reason"):  # the kubelet ended it: Evicted, Preempting, ...
            said = f"{reason}: {pod['status'].get('message', '').strip()}".strip(": ")
            full = _OVERFULL.search(said)
            field = _SIZED_BY.get(full[1]) if full else None
            return f"{said}; raise spec.resources.{field}" if field else said
        for container in pod["status"].get("containerStatuses", ()):
            if ended := container.get("state", {}).get("terminated"):
                lines = [line for line in ended.get("message", "").splitlines() if line.strip()]
                said = lines[-1][:300] if lines else ended.get("reason", "")
                if (words := heard(lines)) is not None:
                    said = words.line
                return f"exit code {ended.get('exitCode')}: {said}"
    return ""
