"""What the monitor finds, as it finds it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice

import grpc

from forkcast.records import Event, Tier, Trigger
from forkcast_watch.tolerance import log
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import summary_from_wire, trigger_from_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.run_events import event_of

_EVERY_SECONDS, _ANSWER_SECONDS = 1.0, 2.0


def event_in(summary: pb.RunSummary) -> Event | None:
    """The last event that a summary tells of, None if it tells of none."""
    if not summary.last_event:
        return None
    onset = summary.HasField("last_event_onset_step")  # of a monitor of this version
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
        known: int,
        *,
        happened: Callable[[Event], None],
        triggered: Callable[[Trigger], None],
    ) -> None:
        """known: how many triggers there were before; those are not news. happened: gets each event, those
        of triggers included. triggered: gets each trigger, after its event.
        """
        self._target, self._uid, self._after = target, run_uid, known
        self._happened, self._triggered = happened, triggered
        self._last: tuple[int, str] | None = None
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
        asked = pb.ListRunsRequest(run_uids=[self._uid])
        for summary in stub.ListRuns(asked, timeout=_ANSWER_SECONDS).runs:
            triggers = self._new_triggers(stub, summary.triggers - self._after)
            steps = {one.step for one in triggers}
            event = event_in(summary_from_wire(summary))
            if event is not None and (event.step, event.cause) != self._last:
                self._last = (event.step, event.cause)
                if event.step not in steps:
                    self._happened(event)
            for trigger in triggers:
                self._happened(event_of(trigger))
                self._triggered(trigger)

    def _new_triggers(self, stub: MonitorStub, count: int) -> list[Trigger]:
        if count <= 0:
            return []
        request = pb.WatchTriggersRequest(run_uid=self._uid, after=self._after)
        answers = stub.WatchTriggers(request, timeout=_ANSWER_SECONDS)
        found = []
        for one in islice(answers, count):
            found.append(trigger_from_wire(one.trigger))
            self._after = one.seq
        answers.cancel()
        return found

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
