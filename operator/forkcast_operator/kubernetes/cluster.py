"""The API server, through `kubernetes.aio.dynamic`: what the operator asks of it, and nothing else.

Everything is written by server-side apply under one field manager, so that writing again is
success and a field that somebody else owns stays theirs. Every request has a time limit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import structlog
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import (
    KUBE_CONFIG_DEFAULT_LOCATION,
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import ResourceNotFoundError

from forkcast_operator.kubernetes import metrics
from forkcast_wire import crash
from forkcast_wire.fields import API_VERSION

T = TypeVar("T")
Body = dict[str, Any]
Kind = tuple[str, str]

RUN: Final[Kind] = (API_VERSION, "TrainingRun")
BRANCH: Final[Kind] = (API_VERSION, "Branch")
JOB: Final[Kind] = ("batch/v1", "Job")
JOBSET: Final[Kind] = ("jobset.x-k8s.io/v1alpha2", "JobSet")
POD: Final[Kind] = ("v1", "Pod")
SERVICE: Final[Kind] = ("v1", "Service")
CONFIG_MAP: Final[Kind] = ("v1", "ConfigMap")
EVENT: Final[Kind] = ("v1", "Event")
LEASE: Final[Kind] = ("coordination.k8s.io/v1", "Lease")

FIELD_MANAGER: Final = "forkcast-operator"
_REQUEST_SECONDS: Final = 8.0
_log = structlog.get_logger()


class ClusterError(RuntimeError):
    """The API server refused, or did not answer; status 0 where it did not."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: {status or 'no answer'}: {message}")
        self.status, self.message = status, message


class UnansweredError(ClusterError):
    """The request took too long."""


async def configuration() -> Configuration:
    """How the API server is reached: as a pod, or by a developer's kubeconfig."""
    found = Configuration()
    # otherwise each request asks a thread of the event loop's for proxies and passwords
    found.client_session_kwargs = {"trust_env": False}
    try:
        load_incluster_config(client_configuration=found)
    except ConfigException:
        file = os.environ.get("KUBECONFIG", KUBE_CONFIG_DEFAULT_LOCATION)
        await load_kube_config(config_file=file, client_configuration=found)
    return found


class Listed(list[Body]):
    """The objects of a list, and the version of the cluster that they are of."""

    def __init__(self, bodies: list[Body], version: str) -> None:
        super().__init__(bodies)
        self.version = version


class Cluster:
    """A connection to the API server. Close it."""

    def __init__(self, client: ApiClient, dynamic: DynamicClient) -> None:
        self._client, self._dynamic = client, dynamic
        self._kinds: dict[Kind, Any] = {}
        self._left: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(cls, config: Configuration, cache: Path) -> Cluster:
        """cache: a file that does not exist yet, for the discovery of kinds. Raises ClusterError."""
        client = ApiClient(configuration=config)
        dynamic = DynamicClient(client, cache_file=str(cache))
        try:
            return cls(
                client, await _answered("discover", "discover", lambda: dynamic, count=False)
            )
        except BaseException:
            await client.close()
            raise

    async def close(self) -> None:
        """Close the connections."""
        for task in self._left:
            task.cancel()
        if self._left:
            await asyncio.wait(self._left)
        await self._client.close()

    async def knows(self, kind: Kind) -> bool:
        """Whether the API server serves the kind."""
        try:
            await self._resource(kind)
        except ResourceNotFoundError:
            return False
        return True

    async def _resource(self, kind: Kind) -> Any:
        if kind not in self._kinds:
            version, name = kind
            self._kinds[kind] = await self._dynamic.resources.get(api_version=version, kind=name)
        return self._kinds[kind]

    async def _call(
        self, verb: str, kind: Kind, call: Callable[[Any], Awaitable[Any]], *, writes: bool
    ) -> Any:
        what = f"{verb}:{kind[1]}"
        if writes:
            crash.reach(f"before-{what}")
        try:
            resource = await self._resource(kind)
        except ResourceNotFoundError:
            raise ClusterError(what, 404, "the API server does not serve this kind") from None
        pool = self._client.rest_client.pool_manager
        try:
            answer = await _answered(verb, what, lambda: call(resource))
        except UnansweredError:
            self.hang_up(pool)
            raise
        if writes:
            crash.reach(f"after-{what}")
        return answer

    def hang_up(self, pool: aiohttp.ClientSession | None = None) -> None:
        """Leave the pool of connections: one of them was silent, and its neighbours may be, too.
        Each would cost the time of a request before it is found out. What is under way on them has
        that time; the server may only be slow.

        pool: the one that was silent, where that is known; another one stays.
        """
        rest = self._client.rest_client
        standing = rest.pool_manager
        if standing is None or (pool is not None and pool is not standing):
            return
        rest.pool_manager, rest.retry_client = None, None
        closing = asyncio.create_task(_close_later(standing))
        self._left.add(closing)
        closing.add_done_callback(self._left.discard)

    async def schema(self, kind: Kind) -> Body:
        """The kind's schema with its defaults, as the API server publishes it; every account may read
        it. Raises ClusterError.
        """
        what = f"schema:{kind[1]}"
        path, pool = f"/openapi/v3/apis/{kind[0]}", self._client.rest_client.pool_manager

        def ask() -> Any:
            return self._dynamic.request("get", path, serializer=lambda _, answer: answer)

        try:
            found = await _answered("get", what, ask)
        except UnansweredError:
            self.hang_up(pool)
            raise
        wanted = {"group": kind[0].partition("/")[0], "version": kind[0].partition("/")[2]}
        for schema in found.get("components", {}).get("schemas", {}).values():
            if {**wanted, "kind": kind[1]} in schema.get("x-kubernetes-group-version-kind", ()):
                known: Body = schema
                return known
        raise ClusterError(what, 404, "the API server publishes no schema of this kind")

    async def get(self, kind: Kind, namespace: str, name: str) -> Body | None:
        """The object, None where there is none. Raises ClusterError."""
        try:
            found = await self._call(
                "get", kind, lambda r: r.get(name=name, namespace=namespace), writes=False
            )
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return _plain(found)

    async def list(self, kind: Kind, namespace: str, labels: str) -> Listed:
        """The objects of a namespace that carry the labels; none of a kind that is not served (any
        more): then there is nothing left of it to wait for. Raises ClusterError.
        """
        try:
            found = await self._call(
                "list",
                kind,
                lambda r: r.get(namespace=namespace, label_selector=labels),
                writes=False,
            )
        except ClusterError as error:
            if error.status == 404:
                return Listed([], "")
            raise
        answer = _plain(found)
        bodies: list[Body] = answer["items"]
        for body in bodies:  # items of a list do not say what they are
            body.setdefault("kind", kind[1])
        return Listed(bodies, answer.get("metadata", {}).get("resourceVersion", ""))

    async def apply(self, body: Mapping[str, Any]) -> Body:
        """Make the object so; returns it as it stands. Raises ClusterError."""
        kind = (body["apiVersion"], body["kind"])
        meta = body["metadata"]
        return _plain(
            await self._call(
                "apply",
                kind,
                lambda r: r.server_side_apply(
                    body=dict(body),
                    name=meta["name"],
                    namespace=meta["namespace"],
                    field_manager=FIELD_MANAGER,
                    force_conflicts=True,
                ),
                writes=True,
            )
        )

    async def create(self, body: Mapping[str, Any]) -> Body | None:
        """Create the object; None where one of its name exists. Raises ClusterError."""
        kind = (body["apiVersion"], body["kind"])
        namespace = body["metadata"]["namespace"]
        try:
            made = await self._call(
                "create",
                kind,
                lambda r: r.create(
                    body=dict(body), namespace=namespace, field_manager=FIELD_MANAGER
                ),
                writes=True,
            )
        except ClusterError as error:
            if error.status == 409:
                return None
            raise
        return _plain(made)

    async def replace(self, body: Mapping[str, Any]) -> Body | None:
        """Replace the object as it was read; None where it has changed since, or is gone.

        Raises ClusterError.
        """
        kind = (body["apiVersion"], body["kind"])
        meta = body["metadata"]
        try:
            made = await self._call(
                "patch",
                kind,
                lambda r: r.replace(
                    body=dict(body), name=meta["name"], namespace=meta["namespace"]
                ),
                writes=True,
            )
        except ClusterError as error:
            if error.status in (404, 409):
                return None
            raise
        return _plain(made)

    async def apply_status(
        self, kind: Kind, namespace: str, name: str, status: Mapping[str, Any]
    ) -> Body | None:
        """Make the object's status so; None where the object is gone. Raises ClusterError."""
        body = {
            "apiVersion": kind[0],
            "kind": kind[1],
            "metadata": {"name": name, "namespace": namespace},
            "status": dict(status),
        }
        return await self._there(
            "apply",
            kind,
            lambda r: r.status.server_side_apply(
                body=body,
                name=name,
                namespace=namespace,
                field_manager=FIELD_MANAGER,
                force_conflicts=True,
            ),
        )

    async def merge(
        self, kind: Kind, namespace: str, name: str, patch: Body, *, status: bool = False
    ) -> Body | None:
        """Merge a patch into the object, or its status; None where it is gone. With a
        metadata.resourceVersion the patch is refused (409) where the object has changed since.

        Raises ClusterError.
        """

        def call(resource: Any) -> Awaitable[Any]:
            of = resource.status if status else resource
            answer: Awaitable[Any] = of.patch(
                body=patch,
                name=name,
                namespace=namespace,
                content_type="application/merge-patch+json",
                field_manager=FIELD_MANAGER,
            )
            return answer

        return await self._there("patch", kind, call)

    async def _there(
        self, verb: str, kind: Kind, call: Callable[[Any], Awaitable[Any]]
    ) -> Body | None:
        try:
            return _plain(await self._call(verb, kind, call, writes=True))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def delete(
        self, kind: Kind, namespace: str, name: str, *, grace: int | None = None
    ) -> None:
        """Delete the object with what it owns, which goes first; a missing one is success.

        grace: seconds for its pods to leave. Raises ClusterError.
        """
        options = {"propagationPolicy": "Foreground"}
        try:
            await self._call(
                "delete",
                kind,
                lambda r: r.delete(
                    name=name, namespace=namespace, body=options, grace_period_seconds=grace
                ),
                writes=True,
            )
        except ClusterError as error:
            if error.status != 404:
                raise


async def _close_later(pool: aiohttp.ClientSession) -> None:
    """Close it when every request that was under way has had its time."""
    try:
        await asyncio.sleep(_REQUEST_SECONDS)
    finally:
        await pool.close()


async def _answered(verb: str, what: str, call: Callable[[], Any], *, count: bool = True) -> Any:
    status = 0
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            answer = await call()
    except ApiException as error:
        status = int(error.status or 0)
        raise ClusterError(what, status, _message(error)) from None
    except TimeoutError:
        raise UnansweredError(what, 0, f"not within {_REQUEST_SECONDS:g} s") from None
    except (aiohttp.ClientError, RuntimeError, OSError) as error:  # RuntimeError: session closed
        raise ClusterError(what, 0, f"{type(error).__name__}: {error}") from None
    else:
        status = 200
        return answer
    finally:
        if count:
            metrics.API_REQUESTS.labels(verb, metrics.code_of(status)).inc()


def _message(error: ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
    text = str(body or error.reason)
    marker = '"message":"'
    if marker in text:
        text = text.split(marker, 1)[1].split('","', 1)[0]
    return text[:500]


def _plain(answer: Any) -> Body:
    plain: Body = answer.to_dict()
    return plain
