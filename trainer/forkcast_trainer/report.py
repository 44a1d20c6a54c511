"""Statistics out, directives in, and the training step never waits for either.

`Reporter.report` appends to a bounded ring and returns. A thread keeps one stream to the monitor:
whatever is queued goes out as one batch, unacknowledged records are sent again on a new stream, and
what the ring had to drop is told as a gap.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

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
_RETRY_SECONDS = (0.2, 2.0)


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


class Reporter:
    """One rank's stream. Without a target it only counts."""

    def __init__(self, target: str, hello: Hello) -> None:
        self._target, self._hello = target, hello
        self._ring: deque[StepStats] = deque()
        self._gaps: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._inbox: dict[str, pb.Directive] = {}
        self._closing = False
        self._closed = threading.Event()
        self._generation = 0
        self._sent = 0  # records of the ring that the present stream has sent
        self._stream_id = 0  # a broken stream's generator may still wait: it must not go on
        self._jitter = random.Random(hello.attempt)  # never the training's generators
        self.dropped = 0
        self._thread: threading.Thread | None = None
        if target:
            self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
            self._thread.start()

    def report(self, stats: StepStats) -> None:
        """Queue one record; drops the oldest where the ring is full."""
        if self._thread is None:
            return
        with self._changed:
            if len(self._ring) >= RING_STEPS:
                lost = self._ring.popleft()
                self._sent = max(0, self._sent - 1)
                self._gaps.append((lost.step, lost.step))
                self.dropped += 1
            self._ring.append(stats)
            self._changed.notify_all()

    def new_epoch(self, hello: Hello) -> None:
        """Begin a new stream with another hello, after a collapse."""
        with self._changed:
            self._hello = hello
            self._generation += 1
            self._changed.notify_all()

    def directives(self) -> list[pb.Directive]:
        """The directives that have arrived since the last call, in order of arrival."""
        with self._changed:
            found = list(self._inbox.values())
            self._inbox.clear()
            return found

    def wait(self, seconds: float) -> None:
        """Sleep until a directive arrives, at most ``seconds``."""
        with self._changed:
            if not self._inbox:
                self._changed.wait(seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Give what is queued a last chance to go out."""
        if self._thread is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._ring, timeout=seconds)
            self._closing = True
            self._changed.notify_all()
        self._closed.set()
        self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while not self._closing:
            try:
                with open_channel(self._target) as channel:
                    self._stream(MonitorStub(channel))
            except grpc.RpcError as error:
                _log.info("report.disconnected", code=str(error.code()))
            low, high = _RETRY_SECONDS
            self._closed.wait(low + (high - low) * self._jitter.random() ** 2)

    def _stream(self, stub: MonitorStub) -> None:
        generation = self._generation
        in_flight: deque[tuple[int, int]] = deque()  # (seq, records)
        with self._changed:
            self._sent = 0
            self._stream_id += 1
            stream = self._stream_id
        answers = stub.Report(self._batches(generation, stream, in_flight))
        for ack in answers:
            with self._changed:
                while in_flight and in_flight[0][0] <= ack.seq:
                    _, count = in_flight.popleft()
                    count = min(count, self._sent)
                    for _ in range(count):
                        self._ring.popleft()
                    self._sent -= count
                for directive in ack.directives:
                    self._inbox[directive.id] = directive
                self._changed.notify_all()

    def _batches(
        self, generation: int, stream: int, in_flight: deque[tuple[int, int]]
    ) -> Iterator[pb.StatsBatch]:
        hello = self._hello
        yield pb.StatsBatch(
            hello=pb.Hello(
                run_uid=hello.run_uid,
                epoch=hello.epoch,
                attempt=hello.attempt,
                rank=hello.rank,
                start_step=hello.start_step,
                total_steps=hello.total_steps,
                base_step=hello.base_step,
            )
        )
        seq = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._closing
                        or self._generation != generation
                        or self._stream_id != stream
                        or len(self._ring) > self._sent
                    )
                )
                drained = len(self._ring) <= self._sent
                changed = self._generation != generation and (
                    drained or self._ring[self._sent].epoch != hello.epoch
                )
                if self._stream_id != stream or changed or (drained and self._closing):
                    return
                fresh = [self._ring[i] for i in range(self._sent, len(self._ring))][:_BATCH]
                # the records of one stream are of one epoch: a newer one waits for its own hello
                epoch = fresh[0].epoch
                fresh = [one for one in fresh if one.epoch == epoch]
                gaps, self._gaps = self._gaps, []
                self._sent += len(fresh)
                seq += 1
                in_flight.append((seq, len(fresh)))
            yield pb.StatsBatch(
                seq=seq,
                stats=[stats_to_wire(one) for one in fresh],
                gaps=[pb.Gap(first_step=a, last_step=b) for a, b in gaps],
            )
