"""A run that is being deleted: its pods go first, then what it holds elsewhere, then the finalizer.

Store and monitor are asked, and not waited for beyond a minute: deleting never hangs on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from forkcast.ports import Store
from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.cluster import BRANCH, JOB, JOBSET, RUN, Cluster
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.definition import Definition
from forkcast_operator.kubernetes.memory import Memory
from forkcast_operator.kubernetes.monitor_link import MonitorLink, in_thread
from forkcast_operator.kubernetes.passes import Passes
from forkcast_operator.kubernetes.run import Run, SpecError, StorePlace, store_place
from forkcast_operator.kubernetes.view import View
from forkcast_wire.manifest import Storage, TrainingRunSpec
from forkcast_wire.resources import FINALIZER
from forkcast_wire.store import StoreError

_log = structlog.get_logger()
_GIVE_UP_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 1.0


async def set_finalizers(
    cluster: Cluster, view: View, run: Run, body: Any, finalizers: list[str]
) -> None:
    """Set the run's finalizers, unless it has changed since it was read. Raises ClusterError."""
    version = body["metadata"]["resourceVersion"]
    patch = {"metadata": {"finalizers": finalizers, "resourceVersion": version}}
    written = await cluster.merge(RUN, run.namespace, run.name, patch)
    if written is not None:
        view.put("TrainingRun", written)


class Ending:
    """Deletes what belongs to runs."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        config: OperatorConfig,
        link: MonitorLink | None,
        *,
        jobsets: bool,
        open_store: Callable[[Storage], Store],
        passes: Passes,
        definition: Definition,
    ) -> None:
        self._cluster, self._view, self._config, self._link = cluster, view, config, link
        self._kinds = [JOBSET, JOB, BRANCH] if jobsets else [JOB, BRANCH]
        self._open_store, self._passes, self._definition = open_store, passes, definition

    async def step(self, run: Run, body: Any, memory: Memory) -> float | None:
        """The next move, over a fresh list of its children; returns when to look again, seconds.

        Raises ClusterError.
        """
        if not run.holds_finalizer:
            return None
        now = time.monotonic()
        memory.deleting_since = memory.deleting_since or now
        if await self._clear(run):
            return _LOOK_SECONDS
        late = now - memory.deleting_since > _GIVE_UP_SECONDS
        if not await self._let_go(run, memory) and not late:
            return _RETRY_SECONDS
        if late:
            _log.warning("run.left_in_store", uid=run.uid)
        others = [one for one in run.finalizers if one != FINALIZER]
        await set_finalizers(self._cluster, self._view, run, body, others)
        return None

    async def _clear(self, run: Run) -> bool:
        """Delete the run's workloads and branches; True while one of them or a pod is left."""
        for kind in self._kinds:
            for child in self._view.of_run(kind[1], run.key):
                if "deletionTimestamp" not in child["metadata"]:
                    await self._cluster.delete(kind, run.namespace, child["metadata"]["name"])
        return any(self._view.of_run(kind, run.key) for kind in ("JobSet", "Job", "Pod", "Branch"))

    async def _let_go(self, run: Run, memory: Memory) -> bool:
        """Free what the run holds in monitor and store; False where that is to be tried again."""
        try:
            spec, _ = await self._definition.spec(run)
            place = store_place(run, spec, self._config)
            adopted = await self._left_store(run, spec, place, memory)
            if adopted is None:
                return False
        except SpecError as error:  # it has no records of its own, or not only those
            adopted = ""
            _log.warning("run.records_left", reason=error.reason, error=str(error))
        except StoreError as error:
            metrics.STORE_ERRORS.inc()
            _log.warning("run.not_released", error=str(error))
            return False
        known = replace(run, records_uid=memory.identity)
        if self._link is not None and not adopted and self._link.holds(known):
            await in_thread(self._link.forget, known.identity)
        return True

    async def _left_store(
        self, run: Run, spec: TrainingRunSpec, place: StorePlace, memory: Memory
    ) -> str | None:
        """`_leave_store` in a thread; None if it has not come back."""
        if self._passes.busy(run.uid):
            return None
        if memory.leaving is None:
            pool = self._passes.pools.of(place.operator)
            memory.leaving = pool.submit(
                run.namespace, lambda: self._leave_store(run, spec, place, memory)
            ).future
        await asyncio.wait({memory.leaving}, timeout=_PATIENCE_SECONDS)
        if not memory.leaving.done():
            return None
        leaving, memory.leaving = memory.leaving, None
        return leaving.result()

    def _leave_store(
        self, run: Run, spec: TrainingRunSpec, place: StorePlace, memory: Memory
    ) -> str:
        """Free the pins of the run, and erase its records if it says so. Returns the name of the run
        that has adopted its records, and with them its statistics; "" for none. Blocking.

        Raises SpecError if the records are not its own; StoreError.
        """
        ledger, _ = memory.records(run, place, self._open_store)
        if not ledger.owned():
            return ledger.adopted_away()
        ledger.release()
        if spec.lifecycle.on_delete == "Delete":
            _log.info("run.erased", objects=ledger.erase())
        return ""
