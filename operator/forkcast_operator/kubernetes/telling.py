"""A run's status, events and metrics, brought to the API server and to Prometheus."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.cluster import RUN, Cluster
from forkcast_operator.kubernetes.events import Recorder, newer_event, run_events
from forkcast_operator.kubernetes.memory import Memory
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.run_facts import RunFacts, former_status
from forkcast_operator.kubernetes.run_state import run_state
from forkcast_operator.kubernetes.run_status import run_status, worth_writing
from forkcast_operator.kubernetes.view import View
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import RunCondition, RunState, TrainingRunStatus


class Teller:
    """Publishes the status of all runs."""

    def __init__(self, cluster: Cluster, view: View, recorder: Recorder) -> None:
        self._cluster, self._view, self._recorder = cluster, view, recorder
        self._states: dict[str, RunState] = {}
        self._where: dict[str, tuple[str, str]] = {}

    def gone(self, key: tuple[str, str]) -> list[str]:
        """No run of that namespace and name is left; returns the uids it has had."""
        metrics.forget(*key)
        uids = [uid for uid, where in self._where.items() if where == key]
        for uid in uids:
            self._states.pop(uid, None)
            del self._where[uid]
        self._count()
        return uids

    async def say(
        self,
        run: Run,
        body: Any,
        spec: TrainingRunSpec | None,
        facts: RunFacts,
        memory: Memory,
    ) -> None:
        """Write the status where it is worth a write, with the events of what has changed.

        body: the object. Raises ClusterError.
        """
        now = dt.datetime.now(dt.UTC)
        before = former_status(run)
        after = run_status(run, spec, facts, now)
        state, message = run_state(run, spec, facts, now)
        self._measure(run, state, after, memory, spec, facts)
        await self._expire(run, spec, after, now)
        document = after.document()
        passed = time.monotonic() - memory.written
        if not worth_writing(run.status, document, passed):
            return
        await self._recorder.record(body, run_events(before, after, state, message))
        written = await self._cluster.apply_status(RUN, run.namespace, run.name, document)
        memory.written = time.monotonic()
        if written is not None:
            self._view.put("TrainingRun", written)

    async def left_out(self, run: Run, fields: tuple[str, ...], memory: Memory) -> None:
        """That a spec has fields of a newer definition at their defaults, once for each set of them."""
        about = self._view.get("TrainingRun", run.key)
        if about is not None and fields and fields != memory.left_out:
            memory.left_out = fields
            await self._recorder.record(about, [newer_event(fields)])

    async def _expire(
        self, run: Run, spec: TrainingRunSpec | None, after: TrainingRunStatus, now: dt.datetime
    ) -> None:
        ttl = spec.lifecycle.ttl_seconds_after_finished if spec else None
        ended = after.completion_time
        if ttl is not None and ended is not None and (now - ended).total_seconds() >= ttl:
            await self._cluster.delete(RUN, run.namespace, run.name)

    def _measure(
        self,
        run: Run,
        state: RunState,
        after: TrainingRunStatus,
        memory: Memory,
        spec: TrainingRunSpec | None,
        facts: RunFacts,
    ) -> None:
        self._states[run.uid], self._where[run.uid] = state, run.key
        metrics.declare_run(*run.key)
        stalled = any(c.type == RunCondition.STALLED for c in after.conditions)
        metrics.RUN_STALLED.labels(*run.key).set(stalled)
        metrics.RUN_FAILED.labels(*run.key).set(state is RunState.FAILED)
        latest = after.checkpoints.latest
        if latest is not None and latest.key != memory.checkpoint:
            memory.checkpoint, memory.checkpoint_at = latest.key, time.monotonic()
        if latest is not None and state in (RunState.RUNNING, RunState.BRANCHING):
            age = time.monotonic() - memory.checkpoint_at
            metrics.CHECKPOINT_AGE.labels(*run.key).set(age)
        else:
            metrics.CHECKPOINT_AGE.remove_by_labels({"namespace": run.namespace, "run": run.name})
        self._judge(run, state, after, spec, facts)
        self._count()

    def _judge(
        self,
        run: Run,
        state: RunState,
        after: TrainingRunStatus,
        spec: TrainingRunSpec | None,
        facts: RunFacts,
    ) -> None:
        """Figures in the manifest's own measures, while the run trains and the monitor tells of it."""
        labels = {"namespace": run.namespace, "run": run.name}
        summary = facts.summary
        if state not in (RunState.RUNNING, RunState.BRANCHING) or summary is None or spec is None:
            metrics.CHECKPOINT_BEHIND.remove_by_labels(labels)
            metrics.RUN_UNSTABLE.remove_by_labels(labels)
            return
        latest = after.checkpoints.latest
        saved = latest.step if latest and latest.epoch == summary.epoch else 0
        if latest is None or latest.epoch == summary.epoch:
            behind = max(0, summary.next_step - saved) / spec.checkpoint.every_steps
            metrics.CHECKPOINT_BEHIND.labels(*run.key).set(behind)
        metrics.RUN_UNSTABLE.labels(*run.key).set(summary.over_threshold)

    def _count(self) -> None:
        states = list(self._states.values())
        for state in RunState:
            metrics.RUNS.labels(state.value).set(states.count(state))
