"""What every call passes before its handler: who calls, whether there is room, what it says.

In this order, because each step costs more than the one before: a message is received only for a
known caller who has a place. So a stranger costs a few kilobytes, however large a request may be.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from forkcast_wire.access import CALLER, Admission, Caller, RefusedError, peer_address

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_ARRIVE_SECONDS = 1.0
#: Of requests that are received only to refuse their calls.
_ARRIVING_BYTES = 32 << 20


class _Undecodable:
    """Stands for a message that could not be decoded."""


#: What a handler that reads its stream itself gets for bytes that are no message.
UNDECODABLE: Final = _Undecodable()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """per_caller: calls of one account at once, in_all: of all accounts; neither counts operators.
    per_peer: calls of one address at once, if callers are not asked who they are. at_once: requests
    (no streams) that are received and served at the same time, of everybody; ``waiting`` more wait
    their turn. read_seconds: that a request may take to come. operators_only: nobody else has a
    place. 0: no limit.
    """

    per_caller: int = 512
    in_all: int = 4096
    per_peer: int = 0
    at_once: int = 0
    waiting: int = 64
    read_seconds: float = 30.0
    operators_only: bool = False


class Room:
    """The places of one service."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._callers: Counter[tuple[str, str]] = Counter()
        self._serving = asyncio.Semaphore(places.at_once) if places.at_once else None
        self._waiting = 0

    @asynccontextmanager
    async def place(self, who: Caller | None, peer: str, *, stream: bool) -> AsyncIterator[None]:
        """For the time of one call. peer: as gRPC names it. Raises RefusedError."""
        counted = bool(self._places.per_peer) if who is None else not who.operator
        if not counted:
            async with self._turn(stream=stream):
                yield
            return
        if who is not None and self._places.operators_only:
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED, "operator_only", "for operators, see --operator"
            )
        if who is None:
            key, most = ("", peer_address(peer)), self._places.per_peer
        else:
            key, most = (who.namespace, who.account), self._places.per_caller
        if self._callers[key] >= most or self._callers.total() >= self._places.in_all:
            raise _crowded("too many calls of this account or address, or of all, are open")
        self._callers[key] += 1
        try:
            async with self._turn(stream=stream):
                yield
        finally:
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]

    @asynccontextmanager
    async def _turn(self, *, stream: bool) -> AsyncIterator[None]:
        if self._serving is None or stream:
            yield
            return
        if self._serving.locked() and self._waiting >= self._places.waiting:
            raise _crowded("too many requests wait")
        self._waiting += 1
        try:
            await self._serving.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._serving.release()


def _crowded(message: str) -> RefusedError:
    return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "crowded", message)


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Lets no call through, health checks included, before it is known who calls, if ``admission``
    is given, and has a place. refused: is told the reason of every refusal. receive_bytes: of the
    largest request.
    """

    def __init__(
        self,
        admission: Admission | None,
        refused: Callable[[str], None],
        places: Places,
        receive_bytes: int,
    ) -> None:
        self._admission, self._refused, self._room = admission, refused, Room(places)
        self._read_seconds = places.read_seconds
        self._arriving, self._most_arriving = 0, max(1, _ARRIVING_BYTES // receive_bytes)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, behind all questions. A unary request is taken as a stream of one: gRPC would
        receive and decode it before it asks anybody.
        """
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = next(name for name in _KINDS if getattr(handler, name) is not None)
        takes, gives = kind.split("_")
        inner, decode = getattr(handler, kind), handler.request_deserializer
        if takes == "unary":
            guarded, decode = self._unary(inner, stream=gives == "stream"), _total(decode)
        elif inspect.isasyncgenfunction(inner):  # reflection
            guarded = self._generator(inner)
        else:
            guarded, decode = self._stream(inner), _total(decode)
        make = getattr(grpc, f"stream_{gives}_rpc_method_handler")
        made: grpc.RpcMethodHandler[Any, Any] = make(
            guarded, request_deserializer=decode, response_serializer=handler.response_serializer
        )
        return made

    def _unary(self, inner: Callable[..., Any], *, stream: bool) -> Callable[..., Any]:
        async def call(_requests: Any, context: Any) -> Any:
            async with self._admitted(context, stream=stream, unary=True):
                return await inner(await self._one(context), context)

        return call

    def _stream(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(requests: Any, context: Any) -> Any:
            async with self._admitted(context, stream=True):
                return await inner(requests, context)

        return call

    def _generator(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(requests: Any, context: Any) -> AsyncIterator[Any]:
            async with self._admitted(context, stream=True):
                async for answer in inner(requests, context):
                    yield answer

        return call

    @asynccontextmanager
    async def _admitted(
        self, context: grpc.aio.ServicerContext[Any, Any], *, stream: bool, unary: bool = False
    ) -> AsyncIterator[None]:
        try:
            who = None if self._admission is None else await self._admission(context)
            CALLER.set(who)
            async with self._room.place(who, context.peer(), stream=stream):
                yield
        except RefusedError as refused:
            self._refused(refused.reason)
            if unary:
                await self._let_arrive(context)
            await context.abort(refused.code, refused.message)

    async def _let_arrive(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """A call that is ended while its request is on the way may show as CANCELLED to the caller,
        who then never reads why. So the request is received, unless many are just now.
        """
        if self._arriving >= self._most_arriving:
            return
        self._arriving += 1
        try:
            await _read(context, _ARRIVE_SECONDS)
        finally:
            self._arriving -= 1

    async def _one(self, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The request. Raises RefusedError."""
        request = await _read(context, self._read_seconds)
        if request is None:
            raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "undecodable", "no request came")
        if request is UNDECODABLE or request is grpc.aio.EOF:
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT, "undecodable", "the bytes are no request"
            )
        return request


async def _read(context: grpc.aio.ServicerContext[Any, Any], seconds: float) -> Any:
    """The next message; None if none has come."""
    reading = asyncio.ensure_future(context.read())
    done, _ = await asyncio.wait({reading}, timeout=seconds)
    if not done:  # cancelling the read would cancel the call, before it has its status
        reading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return None
    return reading.result()


def _total(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A decoder that answers for every input: gRPC logs a traceback for each that raises."""

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except Exception:  # noqa: BLE001  of the protobuf library, whichever it is
            return UNDECODABLE

    return decoded
