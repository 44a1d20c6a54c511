"""Statistics out, directives in, and the training step never waits for either.

`Reporter.report` appends to a bounded ring and returns; it wakes nobody, which would cost the step
more than all the rest. A thread keeps one stream to the monitor and looks at the ring every few
milliseconds: whatever is queued goes out as one batch, at most as many batches are in flight as the monitor gives
credit for, unacknowledged records are sent again on a new stream from the step that the monitor
names, and what the ring had to drop is told as a gap.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from forkcast.records import StepStats
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub

_log = structlog.get_logger()
RING_STEPS = 8192
_BATCH = 256
#: Of one batch; the monitor takes no message above 256 KiB.
_BATCH_BYTES = 192 << 10
_MOST_GAPS = 256
#: Whatever a monitor says, so many batches at most are in flight, and so many directives wait for the
#: next step; a real monitor gives credit for 16, and tells each directive of its run once a stream.
MOST_IN_FLIGHT = 64
MOST_DIRECTIVES = 1024
#: How long a record may wait for others to share its batch.
_COALESCE_SECONDS = 0.02
_RETRY_SECONDS = (0.2, 2.0)
_MOST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who reports, from which step on; see the proto."""

    run_uid: str
    epoch: int
    attempt: int
    rank: int
    start_step: int
    total_steps: int
    base_step: int

    def to_wire(self, start_step: int) -> pb.Hello:
        """As the wire says it, for a stream that begins at ``start_step``."""
        return pb.Hello(
            run_uid=self.run_uid,
            epoch=self.epoch,
            attempt=self.attempt,
            rank=self.rank,
            start_step=start_step,
            total_steps=self.total_steps,
            base_step=self.base_step,
        )


@dataclass
class _Stream:
    """One call to the monitor. In flight: (seq, serial after its last record, its gaps)."""

    hello: Hello
    next_serial: int
    credit: int = 0
    seq: int = 0
    over: bool = False
    in_flight: deque[tuple[int, int, list[tuple[int, int]]]] = field(default_factory=deque)
    #: Records of the next batch; the first batch shows how large they are.
    most: int = 32
    largest: int = 1

    def weigh(self, messages: list[pb.StepStats]) -> None:
        """Keep the next batch within _BATCH_BYTES, judged by the largest record so far."""
        self.largest = max([self.largest, *(one.ByteSize() + 4 for one in messages)])
        self.most = max(1, min(_BATCH, _BATCH_BYTES // self.largest))


class Reporter:
    """One rank's stream. Without a target it only counts. ``saves_skipped``: how many saves this
    attempt has skipped, told with each batch.

    log: where it says that it is not connected; in a process of the user's not this project's own.
    """

    def __init__(self, target: str, hello: Hello, log: Any = None) -> None:
        self._target, self._hello = target, hello
        self._log = _log if log is None else log
        self._next_step = hello.start_step  # the first one not reported yet
        self._ring: deque[StepStats] = deque()
        self._first_serial = 0  # of the ring's oldest record; serials count all ever queued
        self._gaps: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._inbox: dict[str, pb.Directive] = {}
        self._closing = False
        self._closed = threading.Event()
        self._live: _Stream | None = None
        self._reached = threading.Event()
        self._call: grpc.Call | None = None
        self._jitter = random.Random(hello.attempt)  # never the training's generators
        self.dropped = self.saves_skipped = 0
        self._thread: threading.Thread | None = None
        if target:
            self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------ for the training's thread

    def report(self, stats: StepStats) -> None:
        """Queue one record; drops the oldest where the ring is full."""
        if self._thread is None:
            return
        with self._changed:
            if len(self._ring) >= RING_STEPS:
                lost = self._ring.popleft()
                self._first_serial += 1
                self._gaps = _joined([*self._gaps, (lost.step, lost.step)])
                self.dropped += 1
            self._ring.append(stats)
            self._next_step = stats.step + 1

    def new_epoch(self, hello: Hello) -> None:
        """Begin a new stream with another hello, after a collapse."""
        with self._changed:
            self._hello, self._next_step = hello, hello.start_step
            self._changed.notify_all()

    def directives(self) -> list[pb.Directive]:
        """The directives that have arrived since the last call, in order of arrival."""
        if not self._inbox:  # nearly always; what arrives now is found at the next step
            return []
        with self._changed:
            found = list(self._inbox.values())
            self._inbox.clear()
            return found

    def wait(self, seconds: float) -> None:
        """Sleep until a directive arrives, at most ``seconds``."""
        with self._changed:
            if not self._inbox:
                self._changed.wait(seconds)

    def reached(self, seconds: float) -> bool:
        """Wait until a monitor has answered for the first time, at most so long; whether it has."""
        return self._reached.wait(seconds)

    @property
    def connected(self) -> bool:
        """Whether a monitor listens now."""
        return self._live is not None

    def close(self, seconds: float = 2.0) -> None:
        """Give what is queued a last chance to go out, where somebody listens."""
        if self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._ring or self._gaps) or self._live is None, timeout=seconds
            )
            self._closing = True
            self._changed.notify_all()
            call = self._call
        self._closed.set()
        self._thread.join(timeout=seconds / 2)
        if self._thread.is_alive() and call is not None:
            call.cancel()  # a stalled monitor must not keep the process
            self._thread.join(timeout=seconds)

    # ------------------------------------------------------------------------- the thread's side

    def _run(self) -> None:
        while not self._closing:
            renewed = False
            try:
                with open_channel(self._target) as channel:
                    renewed = self._talk(MonitorStub(channel))
            except grpc.RpcError as error:
                reason = (error.details() or "")[:_MOST_REASON]
                self._log.info("report.disconnected", code=str(error.code()), reason=reason)
            except ValueError as error:  # certificates may be mounted late; the training goes on
                self._log.warning("report.not_connected", reason=str(error))
            if not renewed:  # an epoch's change is no failure
                low, high = _RETRY_SECONDS
                self._closed.wait(low + (high - low) * self._jitter.random() ** 2)

    def _talk(self, stub: MonitorStub) -> bool:
        """One stream, to its end; True if it ended because another epoch has begun."""
        with self._changed:
            stream = _Stream(self._hello, self._first_serial)
        answers = stub.Report(self._batches(stream))
        with self._changed:
            self._call = answers
        try:
            for ack in answers:
                with self._changed:
                    self._live = stream
                    self._reached.set()
                    self._take(stream, ack)
                    self._changed.notify_all()
        finally:
            with self._changed:
                stream.over, self._live, self._call = True, None, None
                unacknowledged = [gap for _, _, gaps in stream.in_flight for gap in gaps]
                self._gaps = _joined([*unacknowledged, *self._gaps])
                self._changed.notify_all()
        return self._hello is not stream.hello

    def _take(self, stream: _Stream, ack: pb.Ack) -> None:
        """Forget what is acknowledged; keep the directives for the step boundary."""
        stream.credit = max(1, min(ack.credit, MOST_IN_FLIGHT))
        if ack.HasField("resume_from"):
            while self._ring and self._has(stream.hello, ack.resume_from):
                self._forget(1)
            stream.next_serial = max(stream.next_serial, self._first_serial)
        while stream.in_flight and stream.in_flight[0][0] <= ack.seq:
            _, serial, _ = stream.in_flight.popleft()
            self._forget(serial - self._first_serial)
        for directive in ack.directives:
            self._inbox[directive.id] = directive
        if len(self._inbox) > MOST_DIRECTIVES:
            kept = list(self._inbox.items())[-MOST_DIRECTIVES:]  # the newest: they are told again
            self._log.warning("report.directives_dropped", count=len(self._inbox) - len(kept))
            self._inbox = dict(kept)

    def _has(self, hello: Hello, resume_from: int) -> bool:
        oldest = self._ring[0]
        return oldest.epoch == hello.epoch and oldest.step < resume_from

    def _forget(self, count: int) -> None:
        for _ in range(count):  # none where the ring has dropped them already
            self._ring.popleft()
            self._first_serial += 1

    def _batches(self, stream: _Stream) -> Iterator[pb.StatsBatch]:
        with self._changed:
            first = self._first_step(stream.hello.epoch)
        yield pb.StatsBatch(hello=stream.hello.to_wire(first))
        while True:
            with self._changed:
                while not self._may_go_on(stream):
                    blocked = len(stream.in_flight) >= stream.credit  # then an ack will notify
                    self._changed.wait(None if blocked else _COALESCE_SECONDS)
                if stream.over:
                    return
                fresh = self._fresh(stream)
                if not fresh and not self._gaps:
                    return  # closing, or what is left belongs to the next epoch
                gaps, self._gaps = self._gaps, []
                stream.next_serial += len(fresh)
                stream.seq += 1
                stream.in_flight.append((stream.seq, stream.next_serial, gaps))
                seq = stream.seq
            messages = [stats_to_wire(one) for one in fresh]  # not under the lock: it takes a while
            stream.weigh(messages)
            yield pb.StatsBatch(
                seq=seq,
                stats=messages,
                gaps=[pb.Gap(first_step=a, last_step=b) for a, b in gaps],
                saves_skipped=self.saves_skipped,
            )

    def _first_step(self, epoch: int) -> int:
        """Where a new stream begins: at the oldest record that is not acknowledged. The attempt's
        own first step would make a monitor that knows more go back to it.
        """
        waiting = (one.step for one in self._ring if one.epoch == epoch)
        return next(waiting, self._next_step)

    def _may_go_on(self, stream: _Stream) -> bool:
        if stream.over:
            return True
        if len(stream.in_flight) >= stream.credit:
            return False  # nothing before the answer to hello, and no more than the credit
        start = max(stream.next_serial - self._first_serial, 0)
        fresh = start < len(self._ring) and self._ring[start].epoch <= stream.hello.epoch
        return fresh or bool(self._gaps) or self._closing or self._hello is not stream.hello

    def _fresh(self, stream: _Stream) -> list[StepStats]:
        """The next records of this stream. One stream carries one epoch: a newer one waits for its
        own hello. What is left of an older one goes out, its key says what it is.
        """
        stream.next_serial = max(stream.next_serial, self._first_serial)
        start = stream.next_serial - self._first_serial
        end = min(start + stream.most, len(self._ring))
        found = []
        for index in range(start, end):
            if self._ring[index].epoch > stream.hello.epoch:
                break
            found.append(self._ring[index])
        return found


def _joined(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Adjoining gaps as one; beyond 256 of them the oldest two become one that spans both."""
    joined: list[tuple[int, int]] = []
    for low, high in gaps:
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    while len(joined) > _MOST_GAPS:
        (first, _), (_, last), *rest = joined
        joined = [(min(first, last), max(first, last)), *rest]
    return joined
