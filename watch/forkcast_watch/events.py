"""What the monitor finds, as it finds it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from forkcast.records import Trigger
from forkcast_watch.tolerance import log
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import trigger_from_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An event as the log and the trackers get it; see trackers.base.Event."""

    run_uid: str
    epoch: int
    step: int
    onset_step: int
    tier: int
    component: str
    cause: str


def event_of(trigger: Trigger) -> Seen:
    """A trigger of the monitor in the words of an event."""
    parts = dict(trigger.components)
    component = max(parts, key=lambda name: parts[name], default="")
    said = ", ".join(
        f"{name} {parts[name]:+.1f}" for name in sorted(parts, key=lambda n: -parts[n])
    )
    return Seen(
        run_uid=trigger.run_uid,
        epoch=trigger.epoch,
        step=trigger.step,
        onset_step=trigger.onset_step,
        tier=3,
        component=component,
        cause=f"{trigger.rule.value}: z {trigger.z:.1f}" + (f" ({said})" if said else ""),
    )


def words(event: Seen) -> str:
    """One line for the log."""
    since = f" since step {event.onset_step}" if event.onset_step < event.step else ""
    return f"unstable at step {event.step}{since}: {event.cause}"


class EventWatch:
    """A thread that follows the monitor's stream, over any number of connections."""

    def __init__(
        self, target: str, run_uid: str, known: int, happened: Callable[[Trigger], None]
    ) -> None:
        """known: how many there were before; those are not news."""
        self._target, self._uid, self._happened = target, run_uid, happened
        self._told = threading.Condition()
        self._after = known
        self._over = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="forkcast-events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with open_channel(self._target) as channel:
                    self._follow(MonitorStub(channel))
            except (grpc.RpcError, ValueError) as error:
                log.debug("no events now: %s", error)
            self._over.wait(_RETRY_SECONDS)

    def _follow(self, stub: MonitorStub) -> None:
        request = pb.WatchTriggersRequest(run_uid=self._uid, after=self._after)
        answers = stub.WatchTriggers(request)
        self._call = answers
        if self._over.is_set():
            answers.cancel()
        for one in answers:
            self._happened(trigger_from_wire(one.trigger))
            with self._told:
                self._after = one.seq
                self._told.notify_all()

    def catch_up(self, seconds: float) -> None:
        """Wait for what the monitor has found already, at most so long."""
        try:
            with open_channel(self._target) as channel:
                asked = pb.ListRunsRequest(run_uids=[self._uid])
                found = MonitorStub(channel).ListRuns(asked, timeout=seconds).runs
        except (grpc.RpcError, ValueError):
            return
        count = max((one.triggers for one in found), default=0)
        with self._told:
            self._told.wait_for(lambda: self._after >= count, timeout=seconds)

    def close(self) -> None:
        """Stop; waits for the thread."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join()
