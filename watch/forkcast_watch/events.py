"""What the monitor finds, as it finds it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import grpc

from forkcast.records import Event, Tier, Trigger
from forkcast_watch.tolerance import log
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import event_from_wire, summary_from_wire, trigger_from_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.run_events import event_of

_EVERY_SECONDS, _ANSWER_SECONDS = 1.0, 2.0
#: Events, and triggers, of one answer; whatever a monitor says beyond that waits for the next.
_MOST_AT_ONCE = 1024
#: Of a watched training, which nothing collapses.
_EPOCH = 0


def event_in(summary: pb.RunSummary) -> Event | None:
    """The last event that the summary of an earlier monitor tells of, None if it tells of none."""
    if not summary.last_event:
        return None
    onset = summary.HasField("last_event_onset_step")
    return Event(
        run_uid=summary.run_uid,
        epoch=summary.epoch,
        step=summary.last_event_step,
        onset_step=summary.last_event_onset_step if onset else summary.last_event_step,
        tier=Tier.EVENT,
        component="",
        cause=summary.last_event,
    )


def words(event: Event) -> str:
    """One line for the log; the cause says since when."""
    return f"unstable at step {event.step}: {event.cause}"


class EventWatch:
    """A thread that asks the monitor every second what has happened. Calls that it does not answer are
    given up.
    """

    def __init__(
        self,
        target: str,
        run_uid: str,
        attempt: int,
        start_step: int,
        known: int,
        *,
        happened: Callable[[Event], None],
        triggered: Callable[[Trigger], None],
    ) -> None:
        """attempt, start_step: whose events are wanted; those of earlier attempts are no news, even at later
        steps. known: how many triggers there were before. happened: gets each event once, in order, those
        of triggers included. triggered: gets each trigger, after its event.
        """
        self._target, self._uid, self._after = target, run_uid, known
        self._attempt, self._next_step = attempt, start_step
        self._happened, self._triggered = happened, triggered
        self._cut = False
        self._passes = threading.Condition()
        self._begun = self._ended = 0
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="forkcast-events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            self._wake.clear()
            with self._passes:
                self._begun += 1
            try:
                with open_channel(self._target) as channel:
                    while not self._over:
                        self._ask(MonitorStub(channel))
                        self._pause()
            except (grpc.RpcError, ValueError) as error:
                log.debug("no events now: %s", error)
            self._pause()

    def _pause(self) -> None:
        """The end of a pass, and the begin of the next."""
        with self._passes:
            self._ended = self._begun
            self._passes.notify_all()
        if not self._over:
            self._wake.wait(_EVERY_SECONDS)
        self._wake.clear()
        with self._passes:
            self._begun += 1

    def _ask(self, stub: MonitorStub) -> None:
        request = pb.ListEventsRequest(
            run_uid=self._uid, epoch=_EPOCH, attempt=self._attempt, step=self._next_step
        )
        try:
            answer = stub.ListEvents(request, timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            match error.code():
                case grpc.StatusCode.UNIMPLEMENTED:
                    self._ask_earlier(stub)
                case grpc.StatusCode.NOT_FOUND:
                    log.debug("the monitor does not know the run yet")
                case _:
                    raise
            return
        if answer.cut and not self._cut:
            self._cut = True
            log.warning("more events than the monitor keeps; those left out are in the history")
        for message in answer.events[:_MOST_AT_ONCE]:
            try:
                event, attempt = event_from_wire(message)
            except ValueError as error:
                log.debug("an event cannot be read: %s", error)
                continue
            if (event.run_uid, event.epoch, attempt) == (self._uid, _EPOCH, self._attempt):
                self._tell(event)
        for trigger in self._new_triggers(stub, answer.triggers - self._after):
            self._triggered(trigger)

    def _ask_earlier(self, stub: MonitorStub) -> None:
        """Of a monitor of an earlier version: its triggers, and of other events the last alone."""
        asked = pb.ListRunsRequest(run_uids=[self._uid])
        for summary in stub.ListRuns(asked, timeout=_ANSWER_SECONDS).runs:
            last = event_in(summary_from_wire(summary))
            triggers = list(self._new_triggers(stub, summary.triggers - self._after))
            events = {one.step: event_of(one) for one in triggers}
            if last is not None and summary.attempt == self._attempt:
                events.setdefault(last.step, last)
            for step in sorted(events):
                self._tell(events[step])
            for trigger in triggers:
                self._triggered(trigger)

    def _tell(self, event: Event) -> None:
        """An event, unless it has been told."""
        if event.step >= self._next_step:
            self._next_step = event.step + 1
            self._happened(event)

    def _new_triggers(self, stub: MonitorStub, count: int) -> Iterator[Trigger]:
        if count <= 0:
            return
        request = pb.WatchTriggersRequest(run_uid=self._uid, after=self._after)
        answers = stub.WatchTriggers(request, timeout=_ANSWER_SECONDS)
        try:
            for one in islice(answers, min(count, _MOST_AT_ONCE)):
                if one.seq <= self._after:
                    raise ValueError(f"trigger {one.seq} after trigger {self._after}")
                self._after = one.seq
                try:
                    trigger = trigger_from_wire(one.trigger)
                except ValueError as error:
                    log.debug("a trigger cannot be read: %s", error)
                    continue
                if trigger.run_uid == self._uid:
                    yield trigger
        finally:
            answers.cancel()

    def catch_up(self, seconds: float) -> None:
        """Wait for what the monitor has found already, at most so long."""
        with self._passes:
            wanted = self._begun + 1  # the pass that is on may have asked before
            self._wake.set()
            self._passes.wait_for(lambda: self._ended >= wanted or self._over, timeout=seconds)

    def close(self) -> None:
        """Stop; waits for the thread."""
        self._over = True
        self._wake.set()
        self._thread.join()
