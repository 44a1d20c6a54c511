"""One look at one TrainingRun: see cluster, store and monitor, do what is missing, say how it is."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from forkcast.ports import Store
from forkcast_operator.intake import Received
from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.branches import Branches
from forkcast_operator.kubernetes.cluster import (
    BRANCH,
    JOB,
    JOBSET,
    POD,
    Cluster,
    ClusterError,
)
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.definition import NEWER, Definition
from forkcast_operator.kubernetes.ending import Ending, set_finalizers
from forkcast_operator.kubernetes.events import Recorder, suppressed_events
from forkcast_operator.kubernetes.failures import (
    monitor_unavailable,
    refused,
    store_unavailable,
    trainer_trouble,
)
from forkcast_operator.kubernetes.ledger import Look
from forkcast_operator.kubernetes.loss import RecordsLostError
from forkcast_operator.kubernetes.memory import Memory
from forkcast_operator.kubernetes.monitor_link import MonitorLink, in_thread
from forkcast_operator.kubernetes.pace import (
    REFUSED_SECONDS,
    RESYNC_SECONDS,
    STARTING_SECONDS,
    pause,
)
from forkcast_operator.kubernetes.passes import PATIENCE_SECONDS, Passes
from forkcast_operator.kubernetes.rollout_state import pressure, rollout_jobs
from forkcast_operator.kubernetes.run import (
    Run,
    SpecError,
    StorePlace,
    check_account,
    check_executor,
    store_place,
)
from forkcast_operator.kubernetes.run_facts import Failure, RunFacts, former_status, stood
from forkcast_operator.kubernetes.run_state import was_complete
from forkcast_operator.kubernetes.scope import Scope
from forkcast_operator.kubernetes.seen import (
    JobSeen,
    disrupted,
    pod_seen,
    runs_or_will,
)
from forkcast_operator.kubernetes.telling import Teller
from forkcast_operator.kubernetes.trainer_plan import (
    active_seconds,
    asks_for_retry,
)
from forkcast_operator.kubernetes.trainers import Trainers
from forkcast_operator.kubernetes.view import View
from forkcast_operator.stored import MonitorUnavailableError
from forkcast_wire.forkcast_pb2_grpc import ProxyStub
from forkcast_wire.manifest import Mode, Storage, TrainingRunSpec
from forkcast_wire.resources import (
    FINALIZER,
    LABEL_RUN,
    RunCondition,
    TrainerStatus,
)
from forkcast_wire.store import StoreError

_log = structlog.get_logger()
Key = tuple[str, str]
#: Children are listed anew so often, whatever the watches say.
_RELIST_SECONDS: Final = 60.0
#: Volumes are mounted within this, or something that they need is missing.
_MOUNT_SECONDS: Final = 45.0


class Runs:
    """Looks at runs, one at a time each. `look` is the queue's."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        config: OperatorConfig,
        link: MonitorLink | None,
        proxy: ProxyStub | None,
        recorder: Recorder,
        *,
        jobsets: bool,
        open_store: Callable[[Storage], Store],
        wake: Callable[[Key], None] = lambda _: None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._cluster, self._view, self._config = cluster, view, config
        self._link, self._proxy, self._recorder = link, proxy, recorder
        self._jobsets, self._open_store = jobsets, open_store
        self._scope = Scope(config.managed_by)
        self._branches = Branches(cluster, view, config, recorder)
        self._definition = Definition(cluster)
        self._trainers = Trainers(cluster, view, config, jobsets=jobsets)
        self._teller = Teller(cluster, view, recorder)
        self._passes = Passes(wake, patience=patience)
        self._ending = Ending(
            *(cluster, view, config, link),
            jobsets=jobsets,
            open_store=open_store,
            passes=self._passes,
            definition=self._definition,
        )
        self._memories: dict[str, Memory] = {}

    async def look(self, key: Key) -> float | None:
        """One pass; returns after how many seconds to look again.

        Raises what went wrong, for the queue to come back to it.
        """
        body = self._view.get("TrainingRun", key)
        if body is None:
            for uid in self._teller.gone(key):
                self._memories.pop(uid, None)
                self._passes.forget(uid)
            return None
        run = Run.of(body)
        if not self._scope.holds(run):
            return None
        structlog.contextvars.bind_contextvars(namespace=key[0], run=key[1])
        started = time.perf_counter()
        try:
            return await self._look(run, body)
        except ClusterError as error:
            metrics.RECONCILE_ERRORS.labels("TrainingRun", "ApiServer").inc()
            _log.warning("run.retry", error=str(error))
            raise
        except Exception as error:
            metrics.RECONCILE_ERRORS.labels("TrainingRun", "Internal").inc()
            _log.exception("run.failed_pass", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            metrics.RECONCILE_SECONDS.labels("TrainingRun").observe(time.perf_counter() - started)

    async def _look(self, run: Run, body: Any) -> float | None:
        memory = self._memories.setdefault(run.uid, Memory())
        run = replace(run, records_uid=memory.identity)
        await self._relist(run, memory)
        if run.deleting:
            return await self._end(run, body, memory)
        if not run.holds_finalizer:
            finalizers = [*run.finalizers, FINALIZER]
            await set_finalizers(self._cluster, self._view, run, body, finalizers)
        facts, spec, wait = await self._reconcile(run, memory)
        await self._teller.say(run, body, spec, facts, memory)
        return wait

    async def _end(self, run: Run, body: Any, memory: Memory) -> float | None:
        memory.relisted = float("-inf")
        await self._relist(run, memory)
        wait = await self._ending.step(run, body, memory)
        if wait is not None:
            await self._teller.say(run, body, None, self._facts(run, None), memory)
        return wait

    # ---------------------------------------------------------------------------------- what is

    async def _relist(self, run: Run, memory: Memory) -> None:
        """The watches tell what happens; a list, now and then, what they have missed."""
        if time.monotonic() - memory.relisted < _RELIST_SECONDS:
            return
        kinds = [BRANCH, JOB, POD, *([JOBSET] if self._jobsets else [])]
        labels = f"{LABEL_RUN}={run.name}"
        for kind in kinds:
            listed = await self._cluster.list(kind, run.namespace, labels)
            self._view.settle(kind[1], run.key, listed, listed.version)
        memory.relisted = time.monotonic()

    def _facts(self, run: Run, spec: TrainingRunSpec | None) -> RunFacts:
        status = former_status(run)
        failed = stood(run, RunCondition.FAILED)
        now = dt.datetime.now(dt.UTC)
        trainer, all_pods = self._trainers.seen(run), self._trainers.pods(run)
        pods = [pod_seen(pod) for pod in all_pods if runs_or_will(pod)]
        mounting = [pod.created for pod in pods if pod.mounting and pod.created is not None]
        known = status.trainer or TrainerStatus(kind="Job", name="none")
        noted = trainer is not None and known.disrupted == trainer.name
        watched = spec is not None and spec.branching.mode is not Mode.DISABLED
        active, counted = active_seconds(known.active_seconds, known.counted, trainer)
        return RunFacts(
            active_seconds=active,
            counted=counted,
            trainer=trainer,
            pods=pods,
            pods_left=sum(runs_or_will(pod) for pod in self._view.of_run("Pod", run.key)),
            late_mounts=any((now - one).total_seconds() > _MOUNT_SECONDS for one in mounting),
            summary=self._link.summary(run.identity)
            if self._link and watched and self._link.holds(run)
            else None,
            monitor_trouble=self._link.trouble() if self._link and watched else "",
            failure=trainer_trouble(trainer, [pod_seen(pod) for pod in all_pods], now),
            failed=(failed.reason, failed.message) if failed else None,
            # a single pod that goes so is replaced by its Job, without the operator
            disrupted=trainer is not None
            and trainer.wanted > 1
            and (noted or disrupted(all_pods, trainer.name)),
            retry=failed is not None
            and asks_for_retry(failed.observed_generation, run.generation, run.retry, trainer),
            restarts=status.trainer.restarts if status.trainer else 0,
        )

    # ------------------------------------------------------------------------------ what is to be

    async def _reconcile(
        self, run: Run, memory: Memory
    ) -> tuple[RunFacts, TrainingRunSpec | None, float | None]:
        facts = self._facts(run, None)
        try:
            spec, newer = await self._definition.spec(run)
            check_account(run, spec, self._config)
            check_executor(spec)
            place = store_place(run, spec, self._config)
        except SpecError as error:
            failure = Failure(reason=error.reason, message=str(error), stalled=True)
            # a definition that has just been applied is published a moment later
            wait = REFUSED_SECONDS if error.reason == NEWER else RESYNC_SECONDS
            return replace(facts, failure=failure), None, wait
        await self._teller.left_out(run, newer, memory)
        if place.adopt_from:  # a look at every run of the namespace: for none but these
            place = replace(place, busy=self._busy(run))
        facts = replace(self._facts(run, spec), secret=place.secret)
        facts, look = await self._records(run, spec, place, memory, facts)
        ledger, place, info = memory.ledger, memory.place or place, memory.info
        if ledger is None or info is None:  # nothing is known of its records
            stalled = facts.failure is not None and facts.failure.stalled
            if facts.lost is not None:
                return facts, spec, REFUSED_SECONDS
            return facts, spec, RESYNC_SECONDS if stalled else STARTING_SECONDS
        run = replace(run, records_uid=memory.identity)
        unheard = await self._register(run, spec)
        epoch = look.facts.lineage.epoch if look and look.facts.lineage else 0
        try:
            facts = await self._trainers.look(run, spec, place, info, facts, memory, epoch)
        except ClusterError as error:
            if (refusal := refused("Trainer", error)) is None:
                raise
            facts = replace(facts, failure=refusal)
        if look is not None:
            trouble = await self._branches.look(run, spec, place, look, ledger)
            if trouble is not None and trouble.stalled:
                facts = replace(facts, failure=facts.failure or trouble)
            facts = replace(facts, rollouts=trouble)
        if unheard and facts.failure is None:
            metrics.RECONCILE_ERRORS.labels("TrainingRun", "Monitor").inc()
            facts = replace(facts, failure=Failure(reason="MonitorUnavailable", message=unheard))
        return facts, spec, pause(run, spec, facts, dt.datetime.now(dt.UTC))

    def _busy(self, run: Run) -> frozenset[str]:
        """Uids of the namespace's other runs that have not ended and are not suspended."""
        bodies = self._view.all("TrainingRun")
        here = [body for body in bodies if body["metadata"]["namespace"] == run.namespace]
        return frozenset(
            one.uid
            for one in map(Run.of, here)
            if one.uid != run.uid
            and (
                one.deleting
                or not (stood(one, RunCondition.FINISHED) or stood(one, RunCondition.SUSPENDED))
            )
        )

    async def _register(self, run: Run, spec: TrainingRunSpec) -> str:
        if self._link is None or spec.branching.mode is Mode.DISABLED:
            return ""
        unheard = await in_thread(self._link.register, run, spec)
        if not unheard:
            await in_thread(self._link.save_now, run)
        return self._link.handshake_trouble(unheard) or unheard if unheard else ""

    async def _records(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        memory: Memory,
        facts: RunFacts,
    ) -> tuple[RunFacts, Look | None]:
        """A pass over the records. If it has not come back yet, or store or monitor are away, the
        run stays as it is.
        """
        bodies, pods = (self._view.of_run(kind, run.key) for kind in ("Job", "Pod"))
        jobs = self._rollout_jobs(bodies, pods)
        link = self._link
        idle = facts.trainer is None or not facts.trainer.work.alive

        def work() -> Look:
            ledger = memory.claim(run, spec, place, self._open_store)
            if idle:
                ledger.confirm()
            before, known = former_status(run), replace(run, records_uid=ledger.identity)
            triggers, stub = [], None
            if link is not None and link.holds(known):
                triggers, stub = link.triggers(known.identity), link.stub
            return ledger.look(
                spec, triggers, jobs, stub, self._proxy, before=before, paused=spec.suspend
            )

        try:
            look = await self._passes.look(run.key, run.uid, place.operator, work)
        except SpecError as error:
            failure = Failure(reason=error.reason, message=str(error), stalled=True)
            if isinstance(error, RecordsLostError):
                facts = replace(facts, lost=failure)
                if was_complete(run, spec):  # nothing is to be trained: no person is needed
                    return facts, None
            return replace(facts, failure=failure), None
        except StoreError as error:
            metrics.STORE_ERRORS.inc()
            metrics.RECONCILE_ERRORS.labels("TrainingRun", "Store").inc()
            return replace(facts, failure=store_unavailable(place, error)), None
        except MonitorUnavailableError as error:
            metrics.RECONCILE_ERRORS.labels("TrainingRun", "Monitor").inc()
            why = self._link.handshake_trouble(str(error)) if self._link else ""
            return replace(facts, failure=monitor_unavailable(why)), None
        if look is None:
            return facts, None
        for one in look.settled:
            if one.received is Received.SUPPRESSED and one.word in metrics.SUPPRESSIONS:
                metrics.SUPPRESSED.labels(one.word).inc()
            if self._link is not None:
                self._link.settled(one.trigger.run_uid, one.trigger)
        about = self._view.get("TrainingRun", run.key)
        if about is not None:
            await self._recorder.record(about, suppressed_events(look.settled))
        return replace(facts, store=look.facts), look

    def _rollout_jobs(self, bodies: Sequence[Any], pods: Sequence[Any]) -> list[JobSeen]:
        """bodies, pods: of the run. What else waits for room is looked for only if it has rollouts."""
        now = dt.datetime.now(dt.UTC)
        jobs = rollout_jobs(bodies, pods, now)
        if not jobs:
            return jobs
        workloads = [*self._view.all("Job"), *self._view.all("JobSet")]
        return rollout_jobs(bodies, pods, now, pressure(workloads, self._view.all("Pod"), now))
