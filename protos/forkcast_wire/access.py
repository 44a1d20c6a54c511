"""Who calls: established once a call, before any handler sees it.

A Unix socket's folder is its guard, so its callers are not asked. Over TCP a caller shows a
certificate of our authority, or a service account's token that the cluster vouches for.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from forkcast_wire.token_review import Reviewed, Reviewer, ReviewUnavailableError

_log = structlog.get_logger()
#: Why a caller is refused: by the guard, and by a handler that finds what is asked not the caller's.
REASONS = (
    "missing",
    "invalid",
    "not_an_account",
    "review_failed",
    "foreign_namespace",
    "operator_only",
)
_HEALTH = "/grpc.health.v1.Health/"
_MOST_TOKEN_BYTES = 16 << 10
_CACHED_SECONDS, _REFUSED_SECONDS, _MOST_CACHED = 60.0, 5.0, 4096
_REVIEWS_AT_ONCE = 8
#: spiffe://<trust domain>/ns/<namespace>/sa/<service account>
_SPIFFE = re.compile(r"spiffe://[^/]+/ns/([a-z0-9-]+)/sa/([a-z0-9.-]+)")


@dataclass(frozen=True, slots=True)
class Caller:
    """namespace, account: of a service account; namespace is empty for a certificate that names
    none. operator: may do everything.
    """

    namespace: str
    account: str
    operator: bool = False

    def may_see(self, namespace: str) -> bool:
        """Whether what belongs to a namespace is the caller's business."""
        return self.operator or (bool(self.namespace) and self.namespace == namespace)


#: Of the call that is being served; None where callers are not asked who they are.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


class RefusedError(Exception):
    """The call is refused. reason: of REASONS, for the counter."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Admission(Protocol):
    """Establishes who calls."""

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Raises RefusedError."""


def caller(namespace: str, account: str, operators: frozenset[str]) -> Caller:
    """A caller; ``operators`` are named namespace/account, or by a certificate's name alone."""
    name = f"{namespace}/{account}" if namespace else account
    return Caller(namespace, account, operator=name in operators)


class ByCertificate:
    """TLS has verified the certificate; its SPIFFE id says whose it is, else its common name."""

    def __init__(self, operators: frozenset[str]) -> None:
        self._operators = operators

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """See Admission."""
        found = context.auth_context()
        for uri in (*found.get("peer_spiffe_id", ()), *found.get("peer_uri", ())):
            if match := _SPIFFE.fullmatch(uri.decode(errors="replace")):
                return caller(match[1], match[2], self._operators)
        names = found.get("x509_common_name", ())
        if not names:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "missing", "the certificate names nobody"
            )
        return caller("", next(iter(names)).decode(errors="replace"), self._operators)


class ByToken:
    """The bearer token of the metadata, judged by a reviewer whose answers count for a minute. The
    same token is asked about once at a time, and a few different ones.
    """

    def __init__(
        self,
        reviewer: Reviewer,
        operators: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviewer, self._operators, self._clock = reviewer, operators, clock
        self._known: OrderedDict[bytes, tuple[float, Reviewed]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Task[Reviewed]] = {}
        self._pool = ThreadPoolExecutor(_REVIEWS_AT_ONCE, thread_name_prefix="token-review")

    async def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """See Admission."""
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        scheme, _, token = str(given).partition(" ")
        if scheme != "Bearer" or not token or len(token) > _MOST_TOKEN_BYTES:
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "missing", "a bearer token is needed"
            )
        try:
            reviewed = await self._review(token)
        except ReviewUnavailableError as error:
            _log.warning("access.review_failed", reason=str(error))
            raise RefusedError(
                grpc.StatusCode.UNAVAILABLE, "review_failed", "the token could not be reviewed"
            ) from None
        if not reviewed.authenticated:
            # the API's own words may quote the token's content; they go into no reply
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "invalid", "the token is not valid here"
            )
        if not reviewed.account:
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED, "not_an_account", "not a service account's token"
            )
        return caller(reviewed.namespace, reviewed.account, self._operators)

    async def _review(self, token: str) -> Reviewed:
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key)
        if known is not None and self._clock() < known[0]:
            self._known.move_to_end(key)
            return known[1]
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, token))
            self._asked[key] = task
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        return await asyncio.shield(task)  # one caller's leaving is not the others' failure

    async def _ask(self, key: bytes, token: str) -> Reviewed:
        loop = asyncio.get_running_loop()
        reviewed = await loop.run_in_executor(self._pool, self._reviewer, token)
        seconds = _CACHED_SECONDS if reviewed.authenticated else _REFUSED_SECONDS
        self._known[key] = (self._clock() + seconds, reviewed)
        while len(self._known) > _MOST_CACHED:
            self._known.popitem(last=False)
        return reviewed


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Lets no call through but health checks before it is known who calls. refused: is told the
    reason of every refusal.
    """

    def __init__(self, admission: Admission, refused: Callable[[str], None]) -> None:
        self._admission, self._refused = admission, refused

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, behind the question who calls."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_HEALTH):
            return handler
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(name for name in kinds if getattr(handler, name) is not None)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded: grpc.RpcMethodHandler[Any, Any] = make(
            self._guarded(getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return guarded

    def _guarded(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """All handlers are coroutines, or, like those of reflection, asynchronous generators."""
        if inspect.isasyncgenfunction(inner):

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._admit(context)
                async for answer in inner(request, context):
                    yield answer

            return stream

        async def call(request: Any, context: Any) -> Any:
            await self._admit(context)
            return await inner(request, context)

        return call

    async def _admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            CALLER.set(await self._admission(context))
        except RefusedError as refused:
            self._refused(refused.reason)
            await context.abort(refused.code, refused.message)
