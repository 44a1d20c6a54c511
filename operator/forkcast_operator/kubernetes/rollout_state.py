"""How a rollout stands, and why it does not run, from its records, its Job and its pods. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from forkcast.records import TrialStatus
from forkcast.seen import RolloutSeen
from forkcast_operator.kubernetes.run import LABEL_QUEUE
from forkcast_operator.kubernetes.run_facts import Failure
from forkcast_operator.kubernetes.seen import (
    LABEL_JOB,
    PLACES,
    Body,
    JobSeen,
    PodSeen,
    Work,
    instant,
    job_seen,
    pod_seen,
    runs_or_will,
)
from forkcast_wire.resources import RolloutState

#: A Job without a pod for so long gets none: its controller is refused, again and again.
PODLESS_SECONDS: Final = 30.0
#: A queue with room admits a Job within this.
_ADMISSION_SECONDS: Final = 30.0
NOT_ADMITTED: Final = "NotAdmitted"
_NO_PODS: Final = "NoPods"


@dataclass(frozen=True, slots=True)
class RolloutStands:
    """One rollout. reason, message: why it has no running pod, "" if it has, or needs none."""

    state: RolloutState
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What workloads of all runs wait for. lacking: resources, by the scheduler's words. queues:
    namespace and name of queues that have passed a Job over.
    """

    lacking: frozenset[str] = frozenset()
    queues: frozenset[tuple[str, str]] = frozenset()

    def on(self, job: JobSeen, namespace: str) -> bool:
        """Whether the Job holds some of it. A place for a pod is held by every Job."""
        if (namespace, job.queue) in self.queues:
            return True
        held = job.holds | {PLACES}
        return bool(self.lacking & held) if job.holds else bool(self.lacking)


def pressure(workloads: Iterable[Body], pods: Iterable[Body], now: dt.datetime) -> Pressure:
    """workloads, pods: of all runs; trainers that wait are pressure, too."""
    lacking = frozenset[str]().union(
        *(pod_seen(body).lacking for body in pods if runs_or_will(body))
    )
    queues = {
        (body["metadata"]["namespace"], queue)
        for body in workloads
        if (queue := body["metadata"].get("labels", {}).get(LABEL_QUEUE)) and _kept_out(body, now)
    }
    return Pressure(lacking, frozenset(queues))


def _kept_out(body: Body, now: dt.datetime) -> bool:
    """Whether a workload's queue has not admitted it for longer than an admission takes."""
    created = instant(body["metadata"].get("creationTimestamp"))
    held = bool(body.get("spec", {}).get("suspend")) and "deletionTimestamp" not in body["metadata"]
    return held and created is not None and (now - created).total_seconds() >= _ADMISSION_SECONDS


def rollout_jobs(
    jobs: Iterable[Body], pods: Iterable[Body], now: dt.datetime, around: Pressure = Pressure()
) -> list[JobSeen]:
    """The rollouts' Jobs among a run's Jobs. pods: of the run. around: of all runs."""
    short = {
        body["metadata"]["labels"].get(LABEL_JOB)
        for body in pods
        if runs_or_will(body) and pod_seen(body).short
    }
    seen = [
        (job, body["metadata"].get("namespace", ""))
        for body in jobs
        if (job := job_seen(body)) is not None
    ]
    return [
        replace(
            job,
            short=job.name in short or _passed_over(job, now),
            pressed=around.on(job, namespace),
        )
        for job, namespace in seen
    ]


def _passed_over(job: JobSeen, now: dt.datetime) -> bool:
    """Whether its queue has not admitted it for longer than an admission takes."""
    if job.work is not Work.QUEUED or not job.queue or job.created is None:
        return False
    return (now - job.created).total_seconds() >= _ADMISSION_SECONDS


def rollout_stands(
    seen: RolloutSeen | None, job: JobSeen | None, pods: Sequence[PodSeen], now: dt.datetime
) -> RolloutStands:
    """job: the newest of the candidate; pods: of that Job, ended ones left out."""
    last = seen.trials[max(seen.trials)] if seen and seen.trials else None
    if last is not None and last.status is TrialStatus.FAILED:
        return RolloutStands(RolloutState.FAILED, "", last.failure or "")
    if seen is None:
        return RolloutStands(RolloutState.PENDING)
    if seen.until is None:
        return RolloutStands(RolloutState.STOPPED if last is None else RolloutState.MEASURED)
    if seen.until in seen.trials:
        return RolloutStands(RolloutState.MEASURED)
    if any(pod.ready for pod in pods):
        return RolloutStands(RolloutState.RUNNING)
    return RolloutStands(RolloutState.PENDING, *_why_not(job, pods, now))


def _why_not(job: JobSeen | None, pods: Sequence[PodSeen], now: dt.datetime) -> tuple[str, str]:
    if job is None:
        return "", "waits until another rollout of the branch has left its place"
    if job.work is Work.QUEUED:
        queue = f"queue {job.queue}" if job.queue else "whoever suspended it"
        return NOT_ADMITTED, f"{queue} has not admitted Job {job.name}"
    if job.work is not Work.ACTIVE:
        return "", f"Job {job.name} has ended"
    waiting = next((pod for pod in pods if pod.waiting), None)
    if waiting is not None:
        return waiting.waiting, f"pod {waiting.name}: {waiting.message}"
    old = job.created is not None and (now - job.created).total_seconds() >= PODLESS_SECONDS
    if not pods and old:
        return _NO_PODS, f"no pod could be created: see `kubectl describe job {job.name}`"
    return "", "its pod is starting"


def rollout_trouble(stands: Mapping[str, RolloutStands]) -> Failure | None:
    """Why rollouts of a branch do not run, if so. stands: by candidate, the most important first."""
    held = {name: one for name, one in stands.items() if one.reason}
    if not held:
        return None
    first = next(iter(held.values()))
    names = ", ".join(name for name, one in held.items() if one.reason == first.reason)
    return Failure(reason=first.reason, message=f"rollouts {names} do not run: {first.message}")
