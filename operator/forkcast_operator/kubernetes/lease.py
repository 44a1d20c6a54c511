"""Who leads: a Lease, by the client's own election. A replica that loses it is a standby again.

Leading is no fence: a leader that was stopped and wakes writes for a moment still. What must not
happen twice is guarded by the store's create-only records, not by the lease.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from kubernetes.aio.client import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.cluster import LEASE, Body, Cluster, ClusterError
from forkcast_operator.kubernetes.scope import Scope

_DURATION_SECONDS: Final = 15
_RENEW_SECONDS: Final = 10
_RETRY_SECONDS: Final = 2
_CALL_SECONDS: Final = 3.0
_log = structlog.get_logger()


class LeaseLock(BaseLock):
    """A lease over our own connection, whose requests have a time limit."""

    def __init__(
        self, name: str, namespace: str, identity: str, cluster: Cluster, scope: Scope
    ) -> None:
        """scope: the runs that it is about; the Lease says so."""
        super().__init__(name, namespace, identity)
        self._cluster, self._marks = cluster, scope.marks()
        self._seen: Body | None = None
        #: When the lease was last written, by whomever, on the monotonic clock.
        self.held = time.monotonic()

    async def get(
        self, name: str, namespace: str
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        """The record, or (False, why not); the election creates the lease on a clean 404."""
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                seen = await self._cluster.get(LEASE, namespace, name)
        except TimeoutError:
            self._cluster.hang_up()
            return False, ApiException(status=0, reason="no answer")
        except ClusterError as error:
            return False, ApiException(status=error.status, reason=str(error))
        if _renewals(seen) != _renewals(self._seen):
            self.held = time.monotonic()
        self._seen = seen
        if self._seen is None:
            return False, ApiException(status=404, reason="none", body=json.dumps({"code": 404}))
        spec = self._seen.get("spec", {})
        names = ("holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime")
        if not all(spec.get(one) for one in names):
            return True, None
        return True, LeaderElectionRecord(*(str(spec[one]) for one in names))

    async def create(
        self, name: str, namespace: str, election_record: LeaderElectionRecord
    ) -> bool:
        """Create the lease; False if somebody was first or nobody answers."""
        return await self._write(
            self._cluster.create(
                {
                    "apiVersion": LEASE[0],
                    "kind": LEASE[1],
                    "metadata": {"name": name, "namespace": namespace, **self._marks},
                    "spec": _spec(election_record, None),
                }
            )
        )

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Replace the lease as it was read; False if it has changed or nobody answers."""
        del name, namespace
        if self._seen is None:
            return False
        meta = self._seen["metadata"]
        marked = {kind: {**meta.get(kind, {}), **given} for kind, given in self._marks.items()}
        spec = _spec(updated_record, self._seen.get("spec"))
        body = {**self._seen, "metadata": {**meta, **marked}, "spec": spec}
        return await self._write(self._cluster.replace(body))

    async def release(self) -> None:
        """Leave the lease, so that the next one need not wait for its end. Best effort."""
        try:
            standing = await self._cluster.get(LEASE, self.namespace, self.name)
            if standing is None or standing["spec"].get("holderIdentity") != self.identity:
                return
            standing["spec"]["leaseDurationSeconds"] = 1
            standing["spec"]["holderIdentity"] = ""
            await self._cluster.replace(standing)
        except ClusterError as error:
            _log.info("lease.not_released", error=str(error))

    async def _write(self, call: Awaitable[Body | None]) -> bool:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                written = await call
        except TimeoutError:
            self._cluster.hang_up()
            return False
        except ClusterError as error:
            _log.warning("lease.not_written", error=str(error))
            return False
        if written is not None:
            self._seen, self.held = written, time.monotonic()
        return written is not None


def _renewals(lease: Body | None) -> tuple[object, object]:
    """What every write of a holder changes."""
    spec = (lease or {}).get("spec", {})
    return spec.get("holderIdentity"), spec.get("renewTime")


def _spec(record: LeaderElectionRecord, before: Body | None) -> Body:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    former = before or {}
    same = former.get("holderIdentity") == record.holder_identity
    return {
        "holderIdentity": record.holder_identity,
        "leaseDurationSeconds": int(float(record.lease_duration or _DURATION_SECONDS)),
        "acquireTime": former.get("acquireTime", now) if same else now,
        "renewTime": now,
        "leaseTransitions": int(former.get("leaseTransitions") or 0) + (not same),
    }


async def lead(lock: LeaseLock, work: Callable[[], Awaitable[None]]) -> None:
    """Wait for the lease, work while it is ours, wait again where it is lost: the API server may
    have been away for everybody. Returns only where the work itself has ended.
    """
    ended = asyncio.Event()
    working: set[asyncio.Task[Any] | None] = set()

    async def begin() -> None:
        working.add(asyncio.current_task())
        _log.info("lease.acquired", identity=lock.identity)
        metrics.LEADER.set(1)
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001  whatever it is, the process is started again
            _log.exception("lease.work_failed")
        ended.set()

    async def lost() -> None:
        _log.error("lease.lost", identity=lock.identity)
        metrics.LEADER.set(0)

    async def again() -> None:
        while True:
            election: Any = LeaderElection(
                Config(
                    lock,
                    lease_duration=_DURATION_SECONDS,
                    renew_deadline=_RENEW_SECONDS,
                    retry_period=_RETRY_SECONDS,
                    onstarted_leading=begin,
                    onstopped_leading=lost,
                )
            )
            await election.run()

    waiting = asyncio.create_task(again(), name="election")
    try:
        await ended.wait()
    finally:
        waiting.cancel()
        for task in working:
            if task is not None:
                task.cancel()
