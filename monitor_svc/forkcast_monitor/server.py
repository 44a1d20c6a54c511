"""The Monitor service: no arithmetic, only streams.

One event loop serves all streams. A batch is folded in slices, between which every other stream has
its turn; what waits for the disk waits in a thread, with only its own run held. So what one run
sends, however much or wrong, costs the others at most a slice a turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog

from forkcast_monitor import metrics
from forkcast_monitor.attempts import StaleAttemptError
from forkcast_monitor.budget import OverBudgetError
from forkcast_monitor.directives import deliverable
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import Accepted, WatchedRun
from forkcast_monitor.runs import ConflictError, Hosted, Runs, UnknownRunError, visible
from forkcast_monitor.standing import standing
from forkcast_monitor.streams import Limits, Quota, Refused, Stream, Turns
from forkcast_monitor.views import events_reply, summary, window_reply
from forkcast_wire import crash
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.access import CALLER
from forkcast_wire.codec import (
    directive_from_wire,
    directive_to_wire,
    trigger_to_wire,
)
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer
from forkcast_wire.guard import UNDECODABLE

_log = structlog.get_logger()
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Code = grpc.StatusCode
#: Records folded before another stream has its turn: a few milliseconds. They are one write.
_SLICE = 32
#: How long a leaving trainer may take for its last step.
_LAST_STREAMS_SECONDS = 15.0


class Monitor(MonitorServicer):  # type: ignore[misc]  # generated code is untyped
    """Serves the runs."""

    def __init__(self, runs: Runs, limits: Limits | None = None) -> None:
        self._runs = runs
        self._quota = Quota(limits or Limits())
        self._turns = Turns()
        self._draining = False

    # ----------------------------------------------------------------------------- the operator's

    async def RegisterRun(  # noqa: N802
        self, request: pb.RegisterRunRequest, context: _Context
    ) -> pb.RegisterRunResponse:
        """Serve a run from now on."""
        await self._operators_only(context)
        await self._registers(context)
        registration = Registration(
            run_uid=request.run_uid,
            name=request.name,
            namespace=request.namespace,
            uncertainty=request.uncertainty_json,
            mode=request.mode,
            total_steps=request.total_steps,
        )
        try:
            created = await self._runs.register(registration)
        except ConflictError as error:
            await _abort(context, _Code.ALREADY_EXISTS, str(error))
        except ValueError as error:
            await _abort(context, _Code.INVALID_ARGUMENT, str(error))
        except OSError as error:
            await _abort(context, _Code.RESOURCE_EXHAUSTED, f"not registered: {error}")
        return pb.RegisterRunResponse(created=created)

    async def ForgetRun(  # noqa: N802
        self, request: pb.ForgetRunRequest, context: _Context
    ) -> pb.ForgetRunResponse:
        """Delete a run."""
        await self._operators_only(context)
        await self._registers(context)
        return pb.ForgetRunResponse(existed=await self._runs.forget(request.run_uid))

    async def ListRuns(  # noqa: N802
        self, request: pb.ListRunsRequest, _context: _Context
    ) -> pb.ListRunsResponse:
        """The runs of the caller's namespace, or all for an operator, as they stand. None waits for a
        run that is busy: it is told as it stood before.
        """
        wanted, found = set(request.run_uids), []
        for hosted in visible(self._runs.all, _may_see):
            if wanted and hosted.registration.run_uid not in wanted:
                continue
            if hosted.lock.locked() and (stood := hosted.stood) is not None:
                found.append(summary(hosted, stood))
                continue
            try:
                async with self._runs.use(hosted) as run:
                    hosted.stood = standing(run)
                    found.append(summary(hosted, hosted.stood))
            except UnknownRunError:
                continue  # forgotten meanwhile
        return pb.ListRunsResponse(runs=found)

    async def PostDirective(  # noqa: N802
        self, request: pb.PostDirectiveRequest, context: _Context
    ) -> pb.PostDirectiveResponse:
        """Deliver a directive now, and again at every hello until it is superseded."""
        await self._operators_only(context)
        hosted = await self._known(request.directive.run_uid, context)
        try:
            directive = directive_from_wire(request.directive)
        except ValueError as error:
            await _abort(context, _Code.INVALID_ARGUMENT, str(error))
        mode = hosted.registration.mode
        if not deliverable(directive, mode):
            what = type(directive).__name__
            await _abort(context, _Code.FAILED_PRECONDITION, f"mode {mode}: no {what} is delivered")
        if not hosted.directives.leave(directive):
            await _abort(context, _Code.RESOURCE_EXHAUSTED, "too many directives wait")
        for stream in hosted.streams:
            stream.tell(directive_to_wire(hosted.registration.run_uid, directive))
        return pb.PostDirectiveResponse()

    # -------------------------------------------------------------------------------- the trainers'

    async def Report(  # noqa: N802
        self, _batches: AsyncIterator[pb.StatsBatch], context: _Context
    ) -> None:
        """Statistics in, acknowledgements and directives out; an ack may come unasked."""
        hosted: list[Hosted] = []
        try:
            with self._quota.stream(_peer(context), report=True):
                await self._report(context, hosted)
        except Refused as refused:
            for one in hosted:
                one.series.failed(refused.code.name)
            await _abort(context, refused.code, refused.reason)
        finally:
            for one in hosted:
                self._runs.rest(one)

    async def _report(self, context: _Context, reporting: list[Hosted]) -> None:
        stream = Stream(context, self._quota)
        batch = await self._first(context)
        hosted = self._reported(batch.hello.run_uid)
        reporting.append(hosted)
        with _one_of(hosted, stream, self._quota.limits.per_run):
            while batch is not grpc.aio.EOF:
                try:
                    ack = await self._take(hosted, batch)
                except Exception as error:  # noqa: BLE001  this stream ends, the rest goes on
                    raise _refusal(error, hosted) from None
                crash.reach("before-ack")
                await stream.send(ack)
                crash.reach("after-ack")
                if self._draining:
                    raise Refused(_Code.UNAVAILABLE, "the monitor is going away")
                batch = _decoded(await context.read())

    async def _first(self, context: _Context) -> pb.StatsBatch:
        """The batch that says hello. Raises Refused."""
        seconds = self._quota.limits.hello_seconds
        reading = asyncio.ensure_future(context.read())
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        if not done:  # cancelling the read would cancel the call, before it has its status
            reading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise Refused(_Code.DEADLINE_EXCEEDED, f"no hello in {seconds:g} s")
        batch: pb.StatsBatch = reading.result()
        _decoded(batch)
        if batch is grpc.aio.EOF or not batch.HasField("hello"):
            raise Refused(_Code.FAILED_PRECONDITION, "the first batch says hello")
        return batch

    def _reported(self, run_uid: str) -> Hosted:
        """The run that a stream reports for. Raises Refused."""
        sole = self._runs.sole
        if sole is not None:
            if run_uid != sole.registration.run_uid:
                raise Refused(_Code.PERMISSION_DENIED, "another run's statistics")
            return sole
        try:
            hosted = self._runs.find(run_uid)
        except UnknownRunError:
            raise Refused(_Code.FAILED_PRECONDITION, "not registered yet") from None
        if not _may_see(hosted.registration.namespace):
            metrics.REFUSED.labels("foreign_namespace").inc()
            raise Refused(_Code.PERMISSION_DENIED, "a run of another namespace")
        return hosted

    async def _take(self, hosted: Hosted, batch: pb.StatsBatch) -> pb.Ack:
        """Everything of a batch is durable before its ack goes out."""
        ack = pb.Ack(seq=batch.seq)
        async with self._runs.use(hosted) as run:
            before = len(run.triggers)
            if batch.HasField("hello"):
                if batch.hello.run_uid != hosted.registration.run_uid:
                    raise Refused(_Code.PERMISSION_DENIED, "another run's statistics")
                ack.resume_from = await self._hello(hosted, run, batch.hello)
                ack.directives.extend(
                    directive_to_wire(hosted.registration.run_uid, directive)
                    for directive in hosted.directives.pending()
                )
            try:
                if batch.gaps:
                    gaps = [(gap.first_step, gap.last_step) for gap in batch.gaps]
                    await self._runs.blocking(run.lost, gaps)
                    hosted.series.dropped(sum(last - first + 1 for first, last in gaps))
                if batch.stats:
                    hosted.series.skipped(batch.stats[0].attempt, batch.saves_skipped)
                await self._fold(hosted, run, batch)
                await self._runs.sync(run)
            finally:  # what was folded before a failure has happened
                self._runs.told(hosted, before, run)
                hosted.stood = standing(run)
        return ack

    async def _hello(self, hosted: Hosted, run: WatchedRun, hello: pb.Hello) -> int:
        resume_from = await self._runs.folding(
            hosted,
            run.hello,
            hello.epoch,
            hello.start_step,
            hello.base_step,
            hello.total_steps,
            hello.attempt,
        )
        hosted.directives.overtaken(hello.epoch)
        return resume_from

    async def _fold(self, hosted: Hosted, run: WatchedRun, batch: pb.StatsBatch) -> None:
        """The records of a batch, slice by slice."""
        next_step, duplicates = run.next_step, 0
        try:
            for start in range(0, len(batch.stats), _SLICE):
                await self._turns.wait()
                part = batch.stats[start : start + _SLICE]
                if run.syncs_within(len(part)):
                    duplicates += await self._runs.blocking(_accept, run, part)
                else:
                    began = time.perf_counter()
                    duplicates += _accept(run, part)
                    self._turns.spent(time.perf_counter() - began)
        finally:
            if batch.stats:
                hosted.reported = time.monotonic()
            hosted.series.accepted(max(0, run.next_step - next_step), duplicates)
            hosted.series.stands(run.last(), run.detector.last, run.waiting)

    # ------------------------------------------------------------------------------------- readers'

    async def WatchTriggers(  # noqa: N802
        self, request: pb.WatchTriggersRequest, context: _Context
    ) -> None:
        """Triggers with a sequence number above ``after``, then new ones; of one run or of all."""
        everything = not request.run_uid and self._runs.sole is None
        if everything:
            await self._operators_only(context)
            after = dict(request.after_by_run)
        else:
            hosted = await self._known(request.run_uid, context)
            after = {hosted.registration.run_uid: request.after}
        try:
            with self._quota.stream(_peer(context), report=False):
                await context.send_initial_metadata(())  # the watcher knows that it is on
                while not self._draining:
                    ring = self._runs.fired.listen()
                    for one in self._runs.all if everything else [hosted]:
                        try:
                            await self._send_triggers(one, after, context)
                        except UnknownRunError:
                            if not everything:
                                raise
                    await asyncio.shield(ring)
        except UnknownRunError as error:
            await _abort(context, _Code.NOT_FOUND, str(error))
        except Refused as refused:
            await _abort(context, refused.code, refused.reason)
        await _abort(context, _Code.UNAVAILABLE, "the monitor is going away")

    async def _send_triggers(
        self, hosted: Hosted, after: dict[str, int], context: _Context
    ) -> None:
        """Raises UnknownRunError. Waits for no run that is busy: the list only grows."""
        run, uid = await self._runs.opened(hosted), hosted.registration.run_uid
        for trigger in run.triggers[after.get(uid, 0) :]:
            after[uid] = after.get(uid, 0) + 1
            event = pb.TriggerEvent(seq=after[uid], trigger=trigger_to_wire(trigger))
            crash.reach("before-event")
            await context.write(event)

    async def ListEvents(  # noqa: N802
        self, request: pb.ListEventsRequest, context: _Context
    ) -> pb.ListEventsResponse:
        """The last events of a run, from a row on."""
        hosted = await self._known(request.run_uid, context)
        place = request.epoch, request.attempt, request.step
        try:
            return events_reply(await self._runs.opened(hosted), place)
        except UnknownRunError as error:
            await _abort(context, _Code.NOT_FOUND, str(error))

    async def GetWindow(  # noqa: N802
        self, request: pb.GetWindowRequest, context: _Context
    ) -> pb.WindowReply:
        """The last accepted steps and the index at the last one."""
        hosted = await self._known(request.run_uid, context)
        try:
            async with self._runs.use(hosted) as run:
                return await self._runs.blocking(window_reply, run, request.steps)
        except UnknownRunError as error:
            await _abort(context, _Code.NOT_FOUND, str(error))

    # ---------------------------------------------------------------------------------- who and what

    async def drain(self) -> None:
        """End the streams: each after the batch it is in, the watching ones now. The monitor of one
        run waits for its trainer first, which has been told to leave at the same time and has a last
        step to report; other trainers find the next monitor.
        """
        if self._runs.sole is not None:
            await self._quota.silence(_LAST_STREAMS_SECONDS)
        self._draining = True
        self._runs.fired.ring()

    async def _operators_only(self, context: _Context) -> None:
        caller = CALLER.get()
        if caller is not None and not caller.operator and self._runs.sole is None:
            metrics.REFUSED.labels("operator_only").inc()
            await _abort(context, _Code.PERMISSION_DENIED, "for operators only, see --operator")

    async def _registers(self, context: _Context) -> None:
        if self._runs.sole is not None:
            await _abort(
                context, _Code.FAILED_PRECONDITION, "this monitor serves the run of its --manifest"
            )

    async def _known(self, run_uid: str, context: _Context) -> Hosted:
        """The run asked for; an empty uid means the only one."""
        sole = self._runs.sole
        try:
            hosted = sole if sole is not None and not run_uid else self._runs.find(run_uid)
        except UnknownRunError as error:
            await _abort(context, _Code.NOT_FOUND, str(error))
        if sole is None and not _may_see(hosted.registration.namespace):
            metrics.REFUSED.labels("foreign_namespace").inc()
            await _abort(context, _Code.PERMISSION_DENIED, "a run of another namespace")
        return hosted


async def _abort(context: _Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError  # abort has raised


def _decoded(batch: Any) -> Any:
    """Raises Refused."""
    if batch is UNDECODABLE:
        metrics.REFUSED.labels("undecodable").inc()
        raise Refused(_Code.INVALID_ARGUMENT, "the bytes are no batch")
    return batch


def _refusal(error: Exception, hosted: Hosted) -> Refused:
    """What a stream ends with after an error in one of its batches."""
    match error:
        case Refused():
            return error
        case UnknownRunError() | StaleAttemptError():
            return Refused(_Code.FAILED_PRECONDITION, str(error))
        case ValueError():
            return Refused(_Code.INVALID_ARGUMENT, str(error))
        case OverBudgetError():
            if hosted.series.over_budget(error.what):
                _log.warning("monitor.over_budget", **hosted.names, what=error.what, why=str(error))
            return Refused(_Code.RESOURCE_EXHAUSTED, str(error))
        case OSError():
            return Refused(_Code.RESOURCE_EXHAUSTED, f"history not written: {error}")
    _log.error("monitor.stream_failed", **hosted.names, exc_info=error)
    return Refused(_Code.INTERNAL, type(error).__name__)


def _may_see(namespace: str) -> bool:
    caller = CALLER.get()
    return caller is None or caller.may_see(namespace)


def _peer(context: _Context) -> str:
    """Whose streams are counted; an operator's are not."""
    caller = CALLER.get()
    return "" if caller is not None and caller.operator else context.peer()


@contextmanager
def _one_of(hosted: Hosted, stream: Stream, most: int) -> Iterator[None]:
    """A stream among those of its run. Raises Refused where there are too many."""
    if len(hosted.streams) >= most:
        raise Refused(_Code.RESOURCE_EXHAUSTED, f"{most} streams of this run are open")
    hosted.streams.add(stream)
    hosted.series.streams(len(hosted.streams))
    try:
        yield
    finally:
        hosted.streams.discard(stream)
        hosted.series.streams(len(hosted.streams))
        stream.close()


def _accept(run: WatchedRun, records: list[pb.StepStats]) -> int:
    """Take records; how many were known. Raises ValueError, OSError, OverBudgetError."""
    return run.accept_all(records).count(Accepted.DUPLICATE)
