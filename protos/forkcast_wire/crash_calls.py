"""Crash points around every remote call, on the caller's side and on the side that answers.

Nothing of this is in the way of a call unless one of the variables of `forkcast_wire.crash` is set.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from forkcast_wire import crash


def _method(path: str) -> str:
    """``Forecast`` of ``/forkcast.v1.Proxy/Forecast``."""
    return path.rpartition("/")[2]


class CrashingCalls(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]  # grpc is untyped
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """The caller's points: before a call, and after its answer (of a stream: after it is open)."""

    def _around(self, go_on: Callable[..., Any], details: Any, request: Any) -> Any:
        name = _method(details.method)
        crash.reach(f"before-call:{name}")
        answer = go_on(details, request)
        crash.reach(f"after-call:{name}")
        return answer

    intercept_unary_unary = _around
    intercept_unary_stream = _around
    intercept_stream_stream = _around


class CrashingAnswers(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """The answering side's points: before a request is looked at, and before its answer leaves.
    Streams have points of their own, inside their handlers.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of one call, with its points."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        name = _method(handler_call_details.method)

        async def answer(request: Any, context: Any) -> Any:
            crash.reach(f"before-answer:{name}")
            response = await handler.unary_unary(request, context)
            crash.reach(f"after-answer:{name}")
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


def of_client(channel: grpc.Channel) -> grpc.Channel:
    """The channel, with crash points where they are switched on."""
    return grpc.intercept_channel(channel, CrashingCalls()) if crash.ENABLED else channel


def of_server() -> tuple[grpc.aio.ServerInterceptor, ...]:
    """The interceptors a server starts with: none unless crash points are switched on."""
    return (CrashingAnswers(),) if crash.ENABLED else ()
