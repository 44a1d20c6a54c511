"""The trainer of a run: its Job or JobSet, and what its pods read."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from forkcast_operator.kubernetes import manifests, metrics
from forkcast_operator.kubernetes.cluster import JOB, JOBSET, Cluster
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.failures import trainer_ended
from forkcast_operator.kubernetes.memory import Memory
from forkcast_operator.kubernetes.run import Run, StorePlace
from forkcast_operator.kubernetes.run_facts import Failure, RunFacts
from forkcast_operator.kubernetes.seen import TrainerSeen, last_words, trainer_seen
from forkcast_operator.kubernetes.trainer_plan import (
    EndTrainer,
    FailRun,
    Leave,
    StartTrainer,
    TrainerAct,
    plan_trainer,
)
from forkcast_operator.kubernetes.view import View
from forkcast_wire.documents import RunInfo
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import LABEL_COMPONENT

_log = structlog.get_logger()
#: What pods read is written again so often: somebody may have changed or deleted it.
_DRIFT_SECONDS: Final = 60.0


class Trainers:
    """Of all runs. jobsets: whether the cluster has them, for a trainer of several pods."""

    def __init__(
        self, cluster: Cluster, view: View, config: OperatorConfig, *, jobsets: bool
    ) -> None:
        self._cluster, self._view, self._config = cluster, view, config
        self._jobsets = jobsets
        tls = config.monitor.tls if config.monitor else None
        authority = Path(tls) / "ca.crt" if tls else None
        self._monitor_ca = authority.read_text() if authority and authority.exists() else ""

    def seen(self, run: Run) -> TrainerSeen | None:
        """The workload as the watches show it."""
        found = self._view.of_run("Job", run.key) + self._view.of_run("JobSet", run.key)
        return trainer_seen(found)

    def pods(self, run: Run) -> list[Any]:
        """Its pods, whatever their phase."""
        return [
            pod
            for pod in self._view.of_run("Pod", run.key)
            if pod["metadata"]["labels"].get(LABEL_COMPONENT) == "trainer"
        ]

    async def look(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        info: RunInfo,
        facts: RunFacts,
        memory: Memory,
        epoch: int,
    ) -> RunFacts:
        """Start it, end it, or leave it; returns the facts with what was done. While the store cannot be
        read nothing is started or given up. epoch: of the lineage, which a new start trains in.
        """
        await self._settings(run, spec, place, info, memory)
        known = facts.store is not None
        made = facts.trainer.pods_digest if facts.trainer else ""
        edited = bool(made) and made != manifests.pods_digest(run, spec, place, self._config)
        facts = replace(facts, edited=edited)
        act: TrainerAct = plan_trainer(
            facts.trainer,
            spec.lifecycle,
            wanted=not spec.suspend and (facts.failed is None or facts.retry),
            complete=facts.store is not None and facts.store.complete is not None,
            failures=facts.restarts,
            now=dt.datetime.now(dt.UTC),
            retried=facts.retry,
            active_seconds=facts.active_seconds,
            stuck=edited and _stuck(facts),
            disrupted=facts.disrupted,
        )
        if facts.retry and facts.trainer is not None and facts.trainer.work.alive:
            facts = replace(facts, failed=None, restarts=0)
        match act:
            case StartTrainer() if known:
                body = manifests.trainer(
                    run,
                    spec,
                    place,
                    self._config,
                    start=act.start,
                    epoch=epoch,
                    jobset=self._jobsets,
                    active_seconds=facts.active_seconds,
                )
                await self._start(run, body, facts.trainer)
                if act.failures > facts.restarts:
                    metrics.RESTARTS.labels(*run.key).inc()
                started = self.seen(run)
                facts = replace(
                    facts, trainer=started, restarts=act.failures, failed=None, disrupted=False
                )
            case EndTrainer(name=name):
                kind = JOBSET if facts.trainer and facts.trainer.kind == "JobSet" else JOB
                await self._cluster.delete(kind, run.namespace, name)
            case FailRun(reason=reason, message=message):
                said = last_words(self.pods(run))
                facts = replace(facts, failed=trainer_ended(reason, message, said))
            case Leave(seconds=seconds) if seconds is not None and facts.trainer is not None:
                at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
                said = last_words(self.pods(run))
                shown = facts.trainer.message or facts.trainer.reason
                reason, message = trainer_ended("TrainerFailed", shown, said)
                if facts.disrupted:
                    why = "a pod was evicted, preempted or drained away, and no restart is counted"
                    message = f"{why}: {message}"
                failure = Failure(reason=reason, message=message, retry_at=at)
                facts = replace(facts, restarting_at=at, failure=facts.failure or failure)
        return facts

    async def _settings(
        self, run: Run, spec: TrainingRunSpec, place: StorePlace, info: RunInfo, memory: Memory
    ) -> None:
        """The ConfigMap and, for several pods without JobSet, the Service; written when changed,
        and now and then again.
        """
        bodies = [manifests.config_map(run, spec, place, info, self._monitor_ca)]
        if spec.parallelism.nodes > 1 and not self._jobsets:
            bodies.append(manifests.service(run))
        digest = hashlib.sha256(json.dumps(bodies, sort_keys=True).encode()).hexdigest()
        fresh = time.monotonic() - memory.applied_at < _DRIFT_SECONDS
        if memory.applied == digest and fresh:
            return
        for body in bodies:
            await self._cluster.apply(body)
        memory.applied, memory.applied_at = digest, time.monotonic()

    async def _start(self, run: Run, body: Any, before: TrainerSeen | None) -> None:
        made = await self._cluster.create(body)
        if made is not None:
            self._view.put(body["kind"], made)
            _log.info("trainer.started", workload=body["metadata"]["name"])
        if before is not None and not before.work.alive and before.name != body["metadata"]["name"]:
            kind = JOBSET if before.kind == "JobSet" else JOB
            await self._cluster.delete(kind, run.namespace, before.name)


def _stuck(facts: RunFacts) -> bool:
    """Whether no pod of the trainer can start: each waits for what it does not get, or none is made."""
    podless = facts.failure is not None and facts.failure.reason == "NoPods"
    return podless or (bool(facts.pods) and all(pod.waiting for pod in facts.pods))
