"""The Branch objects of a run and the Jobs of its rollouts: made, told of, and pruned."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from forkcast.phases import Finished
from forkcast_operator import clock
from forkcast_operator.kubernetes import manifests, metrics
from forkcast_operator.kubernetes.branch_status import branch_status, newest, participants
from forkcast_operator.kubernetes.cluster import BRANCH, JOB, Cluster, ClusterError
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.events import Recorder, branch_events, opened_event
from forkcast_operator.kubernetes.failures import refused
from forkcast_operator.kubernetes.ledger import Ledger, Look
from forkcast_operator.kubernetes.rollout_state import (
    RolloutStands,
    rollout_stands,
    rollout_trouble,
)
from forkcast_operator.kubernetes.rollouts import Start, Stop, park_seconds
from forkcast_operator.kubernetes.run import Run, StorePlace
from forkcast_operator.kubernetes.run_facts import Failure
from forkcast_operator.kubernetes.seen import (
    LABEL_JOB,
    JobSeen,
    PodSeen,
    Work,
    job_seen,
    pod_seen,
    runs_or_will,
)
from forkcast_operator.kubernetes.view import View
from forkcast_wire.branches import BranchRecord, StoredBranch
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.newer import known_part
from forkcast_wire.resources import BranchCondition, BranchStatus, ConditionStatus

_FINISHED: Final = BranchCondition.FINISHED


class Branches:
    """What the cluster shows of branches."""

    def __init__(
        self, cluster: Cluster, view: View, config: OperatorConfig, recorder: Recorder
    ) -> None:
        self._cluster, self._view, self._config = cluster, view, config
        self._recorder = recorder
        self._active: dict[str, int] = {}

    async def look(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        look: Look,
        ledger: Ledger,
    ) -> Failure | None:
        """Bring objects and Jobs of a run's branches to what the records say. Returns why a rollout
        was refused (its branch waits for the others, until its deadline), or does not run.
        """
        started = time.perf_counter()
        failure: Failure | None = None
        trouble: Failure | None = None
        for branch in (*look.active, *look.ended):
            shown = await self._object(run, branch.record, spec)
            if spec.suspend:
                await self._stop_all(run, branch.record)
            else:
                try:
                    await self._act(run, spec, place, branch, shown, look)
                except ClusterError as error:
                    if (failure := refused("Rollout", error)) is None:
                        raise
            stands = self._stands(run, branch)
            if not branch.finished and not spec.suspend:
                trouble = rollout_trouble(stands)
            deadline = look.deadlines.get(branch.record.name)
            await self._say(run, branch, stands, shown, deadline)
        for branch in look.ended:
            self._ended(run, branch)
        await self._catch_up(run, spec, ledger, look)
        self._active[run.uid] = len(look.active)
        metrics.BRANCHES_ACTIVE.set(sum(self._active.values()))
        if look.active:
            seconds = time.perf_counter() - started
            metrics.RECONCILE_SECONDS.labels("Branch").observe(seconds)
        return failure or trouble

    def _stands(self, run: Run, branch: StoredBranch) -> dict[str, RolloutStands]:
        """How the rollouts stand, by candidate, the control first."""
        now, jobs = dt.datetime.now(dt.UTC), newest(self._jobs(run, branch.record))
        pods: dict[str, list[PodSeen]] = {}
        for body in self._view.of_run("Pod", run.key):
            if runs_or_will(body):
                pods.setdefault(body["metadata"]["labels"].get(LABEL_JOB, ""), []).append(
                    pod_seen(body)
                )
        return {
            name: rollout_stands(
                branch.rollouts.get(name),
                job := jobs.get(name),
                pods.get(job.name, []) if job else [],
                now,
            )
            for name in participants(branch)
        }

    async def _object(self, run: Run, record: BranchRecord, spec: TrainingRunSpec) -> Any:
        known = self._view.get("Branch", (run.namespace, record.name))
        if known is not None and "deletionTimestamp" not in known["metadata"]:
            return known
        about = self._view.get("TrainingRun", run.key)
        if about is not None:
            await self._recorder.record(about, [opened_event(record)])
        made = await self._cluster.create(manifests.branch(run, record, spec))
        if made is None:
            made = await self._cluster.get(BRANCH, run.namespace, record.name)
        if made is not None:
            self._view.put("Branch", made)
        return made

    def _jobs(self, run: Run, record: BranchRecord) -> list[JobSeen]:
        seen = [job_seen(job) for job in self._view.of_run("Job", run.key)]
        return [job for job in seen if job is not None and job.branch == record.name]

    async def _act(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        branch: StoredBranch,
        shown: Any,
        look: Look,
    ) -> None:
        limit = spec.branching.max_concurrent_rollouts
        entrants = sum(rollout.until is not None for rollout in branch.rollouts.values())
        seconds_left = spec.branching.budget.deadline_seconds
        if (deadline := look.deadlines.get(branch.record.name)) is not None:
            seconds_left = int(deadline - clock.now())
        for act in look.acts.get(branch.record.name, ()):
            if isinstance(act, Stop):
                await self._cluster.delete(JOB, run.namespace, act.job)
            elif isinstance(act, Start) and shown is not None:
                made = await self._cluster.create(
                    manifests.rollout_job(
                        run,
                        spec,
                        place,
                        self._config,
                        branch.record,
                        branch_uid=shown["metadata"]["uid"],
                        candidate=act.candidate,
                        rung=act.rung,
                        seconds_left=seconds_left,
                        park_seconds=park_seconds(entrants, limit),
                    )
                )
                if made is not None:
                    self._view.put("Job", made)

    async def _stop_all(self, run: Run, record: BranchRecord) -> None:
        for job in self._jobs(run, record):
            if job.work in (Work.QUEUED, Work.ACTIVE):
                await self._cluster.delete(JOB, run.namespace, job.name)

    async def _say(
        self,
        run: Run,
        branch: StoredBranch,
        stands: Mapping[str, RolloutStands],
        shown: Any,
        deadline: float | None = None,
    ) -> None:
        if shown is None:
            return
        before = _status(shown)
        after = branch_status(
            branch,
            self._jobs(run, branch.record),
            stands,
            before,
            deadline=deadline,
            generation=int(shown["metadata"].get("generation", 0)),
            now=dt.datetime.now(dt.UTC),
        )
        _count_draft(branch, before)
        document = after.document()
        if document == shown.get("status"):
            return
        await self._recorder.record(shown, branch_events(branch, before, after))
        written = await self._cluster.apply_status(
            BRANCH, run.namespace, branch.record.name, document
        )
        if written is not None:
            self._view.put("Branch", written)

    async def _catch_up(self, run: Run, spec: TrainingRunSpec, ledger: Ledger, look: Look) -> None:
        """Branches that ended while no operator looked get their final status; the oldest of those
        that have ended go.
        """
        open_names = {branch.record.name for branch in (*look.active, *look.ended)}
        objects = {body["metadata"]["name"]: body for body in self._view.of_run("Branch", run.key)}
        ended = []
        for branch in ledger.known():
            name = branch.record.name
            if name in open_names or name not in objects or not branch.finished:
                continue
            if not _finished(objects[name]):
                await self._say(run, branch, self._stands(run, branch), objects[name])
            ended.append(name)
        surplus = len(ended) - spec.lifecycle.branch_history
        for name in ended[: max(0, surplus)]:
            await self._cluster.delete(BRANCH, run.namespace, name)

    def _ended(self, run: Run, branch: StoredBranch) -> None:
        phase = branch.phase
        if not isinstance(phase, Finished):
            return
        outcome = phase.outcome.value
        metrics.BRANCHES.labels(outcome).inc()
        metrics.BRANCH_SECONDS.labels(outcome).observe(clock.now() - branch.record.opened_at)
        if branch.decision is not None:
            steps = branch.decision.cost.rollout_steps
            metrics.ROLLOUT_STEPS.labels(*run.key).inc(steps)
            for judged in branch.decision.judgements:
                metrics.ROLLOUTS.labels(judged.verdict.value).inc()


def _count_draft(branch: StoredBranch, before: BranchStatus) -> None:
    if (
        branch.draft is not None
        and before.draft is None
        and branch.draft.proxy in metrics.PROXY_RESULTS
    ):
        metrics.PROXY_REQUESTS.labels(metrics.PROXY_RESULTS[branch.draft.proxy]).inc()


def _status(body: Any) -> BranchStatus:
    """As it stands; one that somebody has made unreadable counts as none."""
    try:
        return known_part(BranchStatus, body.get("status", {}))[0]
    except ValidationError:
        return BranchStatus()


def _finished(body: Any) -> bool:
    return any(
        one.type == _FINISHED and one.status is ConditionStatus.TRUE
        for one in _status(body).conditions
    )
