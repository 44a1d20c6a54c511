"""Who leads: a Lease, by the client's own election. A replica that loses it ends and starts again.

Leading is no fence: a leader that was stopped and wakes writes for a moment still. What must not
happen twice is guarded by the store's create-only records, not by the lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import structlog
from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from forkcast_operator.kubernetes import metrics

_DURATION_SECONDS: Final = 15
_RENEW_SECONDS: Final = 10
_RETRY_SECONDS: Final = 2
_CALL_SECONDS: Final = 4.0
_log = structlog.get_logger()


class PatientLock(LeaseLock):  # type: ignore[misc]  # the client is untyped
    """A lease whose requests have a time limit, and for which a broken connection is a refusal."""

    def __init__(self, name: str, namespace: str, identity: str, client: ApiClient) -> None:
        super().__init__(name, namespace, identity, client)
        self.renewed = time.monotonic()

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """As the lock it is made of."""
        error = ApiException(status=0, reason="no answer")
        found = await self._tried(super().get(name, namespace), otherwise=(False, error))
        return found[0], found[1]

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """As the lock it is made of."""
        return bool(
            await self._tried(super().create(name, namespace, election_record), otherwise=False)
        )

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """As the lock it is made of."""
        done = bool(
            await self._tried(super().update(name, namespace, updated_record), otherwise=False)
        )
        if done:
            self.renewed = time.monotonic()
        return done

    async def _tried(self, call: Awaitable[Any], *, otherwise: Any) -> Any:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await call
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.warning("lease.no_answer", error=f"{type(error).__name__}: {error}")
            return otherwise


async def lead(lock: PatientLock, work: Callable[[], Awaitable[None]]) -> None:
    """Wait for the lease, do the work while it is ours; returns when it is lost."""

    async def begin() -> None:
        _log.info("lease.acquired", identity=lock.identity)
        metrics.LEADER.set(1)
        await work()

    async def lost() -> None:
        _log.error("lease.lost", identity=lock.identity)
        metrics.LEADER.set(0)

    await LeaderElection(
        Config(
            lock,
            lease_duration=_DURATION_SECONDS,
            renew_deadline=_RENEW_SECONDS,
            retry_period=_RETRY_SECONDS,
            onstarted_leading=begin,
            onstopped_leading=lost,
        )
    ).run()


async def give_up(lock: PatientLock, client: ApiClient) -> None:
    """Leave the lease so that the next one need not wait for its end; best effort."""
    from kubernetes.aio.client import CoordinationV1Api

    api = CoordinationV1Api(api_client=client)
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            lease = await api.read_namespaced_lease(lock.name, lock.namespace)
            if lease.spec is None or lease.spec.holder_identity != lock.identity:
                return
            lease.spec.lease_duration_seconds = 1
            await api.replace_namespaced_lease(lock.name, lock.namespace, lease)
    except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
        _log.info("lease.not_released", error=f"{type(error).__name__}: {error}")
