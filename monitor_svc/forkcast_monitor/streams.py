"""Report streams: what one of them may take, and who is told what through it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.access import peer_address

_log = structlog.get_logger()
#: Batches that a stream may have in flight, where few streams are open. With many it is one: then
#: what a trainer gathers during the round trip comes as one batch, and costs one message.
_MOST_CREDIT = 16
_CREDITS = 64
_TURN_SECONDS = 0.002


class Refused(Exception):
    """Ends a call with a status of its own."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """per_peer: streams of one address, not counted on a Unix socket and for operators. per_run:
    Report streams of one run. hello_seconds: for the first batch of a stream.
    """

    per_peer: int = 64
    per_run: int = 8
    hello_seconds: float = 30.0


class Quota:
    """Counts the open streams, by peer and in all."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._peers: Counter[str] = Counter()
        self.reports = 0
        self._silent = asyncio.Event()
        self._silent.set()

    @contextmanager
    def stream(self, peer: str, *, report: bool) -> Iterator[None]:
        """One open stream. Raises Refused if its peer has too many."""
        address = peer_address(peer)
        if address and self._peers[address] >= self.limits.per_peer:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.limits.per_peer} streams of one peer are open",
            )
        self._peers[address] += 1
        self.reports += report
        if report:
            self._silent.clear()
        try:
            yield
        finally:
            self.reports -= report
            if not self.reports:
                self._silent.set()
            self._peers[address] -= 1
            if not self._peers[address]:
                del self._peers[address]

    async def silence(self, seconds: float) -> None:
        """Wait until no Report stream is open, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._silent.wait(), seconds)

    def credit(self) -> int:
        """Of each Report stream now."""
        return max(1, min(_MOST_CREDIT, _CREDITS // max(1, self.reports)))


class Turns:
    """Shares the loop's time: after some milliseconds of folding, everything else that the loop has
    to do comes first, and those who wait go on in the order in which they came. Otherwise one turn
    of the loop would be a slice of every stream, and a new stream waits several turns.
    """

    def __init__(self) -> None:
        self._order = asyncio.Lock()
        self._spent = 0.0

    async def wait(self) -> None:
        """Before a slice."""
        async with self._order:
            if self._spent >= _TURN_SECONDS:
                await asyncio.sleep(0)
                self._spent = 0.0

    def spent(self, seconds: float) -> None:
        """After a slice."""
        self._spent += seconds


class Stream:
    """The answering side of one Report stream. Acks and directives share it, one at a time; a
    reader who stops reading is told less, never more than one directive of each id.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], quota: Quota) -> None:
        self._context, self._quota = context, quota
        self._writing = asyncio.Lock()
        self._waiting: dict[str, pb.Directive] = {}
        self._telling: asyncio.Task[None] | None = None

    async def send(self, ack: pb.Ack) -> None:
        """Write; waits where the reader is slow."""
        ack.credit = self._quota.credit()
        async with self._writing:
            await self._context.write(ack)

    def tell(self, directive: pb.Directive) -> None:
        """Send a directive soon, unasked."""
        self._waiting[directive.id] = directive
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        try:
            while self._waiting:
                told, self._waiting = list(self._waiting.values()), {}
                await self.send(pb.Ack(directives=told))
        except Exception as error:  # noqa: BLE001  the stream has ended; the next hello is told
            _log.info("monitor.directive_not_sent", error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Nothing more is sent."""
        if self._telling is not None:
            self._telling.cancel()
