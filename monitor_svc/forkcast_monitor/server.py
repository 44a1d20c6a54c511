"""The Monitor service: no arithmetic, only streams."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import grpc
import structlog

from forkcast_monitor import metrics
from forkcast_monitor.attempts import StaleAttemptError
from forkcast_monitor.run import Accepted, WatchedRun
from forkcast_wire import crash
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_from_wire, trigger_to_wire, window_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer

_log = structlog.get_logger()
_CREDIT = 16
#: Acks that wait for a slow reader; then its batches wait too.
_OUTBOX_ACKS = 256
_WAKE_SECONDS = 0.5


class Refused(Exception):
    """Ends a stream with a status of its own."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


#: What a stream's answering side waits for: an ack, the end, or the reason of a refusal.
_Outbox = queue.Queue[pb.Ack | Refused | None]


class Monitor(MonitorServicer):  # type: ignore[misc]  # generated code is untyped
    """Serves one run."""

    def __init__(self, run: WatchedRun, name: str) -> None:
        self._run, self._name = run, name
        self._streams: set[_Outbox] = set()
        self._directives: dict[str, pb.Directive] = {}
        self._lock = threading.Lock()

    def Report(  # noqa: N802
        self, request_iterator: Iterator[pb.StatsBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.Ack]:
        """Statistics in, acknowledgements and directives out; an ack may come unasked."""
        outbox: _Outbox = queue.Queue(_OUTBOX_ACKS)
        reader = threading.Thread(target=self._read, args=(request_iterator, outbox), daemon=True)
        with self._lock:
            self._streams.add(outbox)
        reader.start()
        try:
            while True:
                try:
                    ack = outbox.get(timeout=_WAKE_SECONDS)
                except queue.Empty:
                    if not context.is_active():
                        return
                    continue
                if ack is None:
                    return
                if isinstance(ack, Refused):
                    context.abort(ack.code, ack.reason)
                else:
                    yield ack
        finally:
            with self._lock:
                self._streams.discard(outbox)

    def _read(self, batches: Iterator[pb.StatsBatch], outbox: _Outbox) -> None:
        """Everything of a batch is durable before its ack goes out."""
        end: Refused | None = None
        try:
            greeted = False
            for batch in batches:
                ack = pb.Ack(seq=batch.seq, credit=_CREDIT)
                if batch.HasField("hello"):
                    ack.resume_from = self._hello(batch.hello)
                    greeted = True
                    with self._lock:
                        ack.directives.extend(self._directives.values())
                if not greeted:
                    end = Refused(grpc.StatusCode.FAILED_PRECONDITION, "the first batch says hello")
                    return
                for gap in batch.gaps:
                    metrics.DROPPED.labels(self._name).inc(gap.last_step - gap.first_step + 1)
                    self._run.lost(gap.first_step, gap.last_step)
                for message in batch.stats:
                    self._accept(message)
                crash.reach("before-ack")
                outbox.put(ack)
                crash.reach("after-ack")
        except grpc.RpcError:
            pass  # the stream ended; what was accepted stays
        except Refused as refused:
            end = refused
        except OSError as error:
            end = Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"history not written: {error}")
        except Exception as error:  # noqa: BLE001  the stream ends with the reason, the rest goes on
            _log.error("monitor.stream_failed", error=f"{type(error).__name__}: {error}")
            end = Refused(grpc.StatusCode.INTERNAL, type(error).__name__)
        finally:
            outbox.put(end)

    def _hello(self, hello: pb.Hello) -> int:
        if hello.run_uid != self._run.run_uid:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "another run's statistics")
        try:
            resume_from = self._run.hello(
                hello.epoch, hello.start_step, hello.base_step, hello.total_steps, hello.attempt
            )
        except StaleAttemptError as error:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        with self._lock:  # what was meant for an earlier epoch is over
            for key in [k for k, d in self._directives.items() if _epoch(d) <= hello.epoch]:
                if self._directives[key].HasField("collapse"):
                    del self._directives[key]
        metrics.EPOCH.labels(self._name).set(hello.epoch)
        return resume_from

    def _accept(self, message: pb.StepStats) -> None:
        stats = stats_from_wire(message)
        before, next_step = len(self._run.triggers), self._run.next_step
        if self._run.accept(stats) is Accepted.DUPLICATE:
            metrics.DUPLICATES.labels(self._name).inc()
            return
        folded = self._run.next_step - next_step
        metrics.STEPS.labels(self._name).inc(max(folded, 0))
        metrics.LOSS.labels(self._name).set(stats.loss)
        metrics.GRAD_NORM.labels(self._name).set(stats.grad_norm)
        metrics.LAG.labels(self._name).set(max(0, stats.step + 1 - self._run.next_step))
        last = self._run.detector.last
        if last is not None:
            metrics.INDEX.labels(self._name).set(last.index)
            metrics.ZSCORE.labels(self._name).set(last.z)
        for trigger in self._run.triggers[before:]:
            metrics.TRIGGERS.labels(self._name, trigger.rule.value).inc()

    def WatchTriggers(  # noqa: N802
        self, request: pb.WatchTriggersRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TriggerEvent]:
        """Triggers with a sequence number above ``after``, then new ones."""
        self._same_run(request.run_uid, context)
        sent = request.after
        while context.is_active():
            with self._run.new_trigger:
                if len(self._run.triggers) <= sent:
                    self._run.new_trigger.wait(_WAKE_SECONDS)
                fresh = self._run.triggers[sent:]
            for trigger in fresh:
                sent += 1
                crash.reach("before-event")
                yield pb.TriggerEvent(seq=sent, trigger=trigger_to_wire(trigger))

    def GetWindow(  # noqa: N802
        self, request: pb.GetWindowRequest, context: grpc.ServicerContext
    ) -> pb.WindowReply:
        """The last accepted steps and the index at the last one."""
        self._same_run(request.run_uid, context)
        with self._run.lock:
            window, last = self._run.window(request.steps), self._run.detector.last
            return pb.WindowReply(
                window=window_to_wire(window),
                index=last.index if last else 0.0,
                z=last.z if last else 0.0,
                ready=bool(last and last.ready),
                components=dict(last.components) if last else {},
                over_threshold=self._run.detector.over_threshold,
            )

    def PostDirective(  # noqa: N802
        self, request: pb.PostDirectiveRequest, context: grpc.ServicerContext
    ) -> pb.PostDirectiveResponse:
        """Deliver a directive now, and again to whoever says hello until it is superseded."""
        directive = request.directive
        self._same_run(directive.run_uid, context)
        if not directive.id:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a directive needs an id")
        with self._lock:
            for over in ("resume", "collapse"):  # both end the hold of their branch
                if directive.HasField(over):
                    self._directives.pop(f"hold/{getattr(directive, over).branch}", None)
            self._directives[directive.id] = directive
            for outbox in self._streams:
                with contextlib.suppress(queue.Full):  # a stuck stream gets it with its next hello
                    outbox.put_nowait(pb.Ack(credit=_CREDIT, directives=[directive]))
        return pb.PostDirectiveResponse()

    def _same_run(self, run_uid: str, context: grpc.ServicerContext) -> None:
        """An empty uid means the one run that is served here."""
        if run_uid and run_uid != self._run.run_uid:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such run here")


def _epoch(directive: pb.Directive) -> int:
    return int(directive.collapse.epoch) if directive.HasField("collapse") else 0
