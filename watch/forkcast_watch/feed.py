"""What happens beside the training: one thread that takes a step's record to wherever it goes.

The training's thread only appends to a queue. Nothing that happens here, or does not, comes back to it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import structlog

from forkcast.records import Event, StepStats
from forkcast_watch.events import EventWatch, words
from forkcast_watch.monitor_process import MonitorProcess
from forkcast_watch.ranks import RankLosses
from forkcast_watch.run_folder import RunFolder
from forkcast_watch.tolerance import Tolerance, log
from forkcast_watch.trackers import Queued, TrackedRun, Tracker, open_tracker
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.reporting import Hello, Reporter

_PASS_SECONDS = 0.2
_REGISTER_SECONDS = 5.0
#: How long a step's record waits for the losses of other ranks.
_PATIENCE_SECONDS = 5.0
_LAST_SECONDS = 2.0
#: A monitor of our own may still be starting when a short training ends; then it may need so many
#: seconds, and so many to take what has waited for it.
_START_SECONDS, _BACKLOG_SECONDS = 30.0, 10.0
#: The newest: in progress.json, and in `Watch.events`.
_EVENTS_TOLD, _EVENTS_KEPT = 5, 4096
#: Records that wait for this thread; more are dropped, oldest first.
_MOST_WAITING = 8192


def _beside(trackers: Sequence[str | Tracker], folder: RunFolder) -> list[Queued]:
    """Each on a thread of its own. Raises ManifestError."""
    run = TrackedRun(folder.run_uid, folder.registration.name)
    opened: list[Queued] = []
    try:
        for one in trackers:
            tracker = open_tracker(one, run) if isinstance(one, str) else one
            name = one if isinstance(one, str) else type(one).__name__
            opened.append(Queued(tracker, name, log.warning))
    except BaseException:
        for queued in opened:
            queued.close()
        raise
    return opened


class Sink:
    """Where the records of rank 0 go: monitor, trackers, progress.json, and the events into the log."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        monitor: str,
        start_step: int,
        trackers: Sequence[str | Tracker],
        tolerance: Tolerance,
        told: dict[str, Any],
    ) -> None:
        """told: what progress.json says besides the figures of a step. Raises ManifestError for a tracker
        that cannot be opened.
        """
        self._folder, self._told = folder, told
        self._start_step, self._trackers = start_step, _beside(trackers, folder)
        self.events: list[Event] = []
        self.process = None if monitor else MonitorProcess(folder.path)
        if self.process is not None:
            self.process.look()
        self._target = self.process.target if self.process is not None else monitor
        hello = Hello(
            run_uid=folder.run_uid,
            epoch=0,
            attempt=folder.attempt,
            rank=0,
            start_step=start_step,
            total_steps=0,
            base_step=0,
        )
        self._registered = self.process is not None
        self._register_at = 0.0
        self._reporter = Reporter(self._target, hello, quiet_log())
        before = len(list((folder.path / "monitor" / "triggers").glob("*.json")))
        self._tolerance = tolerance
        self._watch = EventWatch(
            self._target,
            folder.run_uid,
            folder.attempt,
            start_step,
            before,
            happened=self._happened,
            triggered=tolerance.shield("the record of events", folder.record),
        )
        self._last: StepStats | None = None
        self._validation: float | None = None
        self._begun = time.monotonic()

    def _happened(self, event: Event) -> None:
        self.events.append(event)
        del self.events[:-_EVENTS_KEPT]
        log.warning("%s", words(event))
        for tracker in self._trackers:
            tracker.event(event)

    def look(self) -> None:
        """Keep the monitor running, or registered with."""
        if self.process is not None:
            self.process.look()
        elif not self._registered and time.monotonic() >= self._register_at:
            self._register_at = time.monotonic() + _REGISTER_SECONDS
            self._registered = register(self._target, self._folder)

    def take(self, stats: StepStats) -> None:
        """One step, in order."""
        self._last = stats
        if stats.validation_loss is not None:
            self._validation = stats.validation_loss
        self._reporter.report(stats)
        for tracker in self._trackers:
            tracker.step(stats, None)
        self.tell("running")

    def tell(self, word: str, *, force: bool = False) -> None:
        """Write progress.json."""
        last = self._last
        seconds = max(time.monotonic() - self._begun, 1e-9)
        steps = 0 if last is None else last.step + 1 - self._start_step
        document: dict[str, Any] = {
            **self._told,
            "state": word,
            "epoch": 0,
            "attempt": self._folder.attempt,
            "step": self._start_step if last is None else last.step + 1,
            "loss": None if last is None or not math.isfinite(last.loss) else last.loss,
            "validation_loss": self._validation,
            "tokens": last.tokens if last is not None else 0,
            "steps_per_second": round(steps / seconds, 3),
            "learning_rate": None if last is None else last.learning_rate,
            "dropped": self._reporter.dropped,
            "not_measured": dict(self._tolerance.failed),
            "events": [
                {"step": one.step, "cause": one.cause} for one in self.events[-_EVENTS_TOLD:]
            ],
        }
        self._folder.tell(document, force=force)

    def close(self) -> None:
        """The last records and events have had their chance to go out; the monitor has ended."""
        if self.process is not None:
            end = time.monotonic() + _START_SECONDS
            while not self._reporter.connected and time.monotonic() < end:
                self.process.look()  # it may have died just now
                if self.process.hopeless:
                    break
                time.sleep(_PASS_SECONDS)
        self._reporter.close(_LAST_SECONDS if self.process is None else _BACKLOG_SECONDS)
        self._watch.catch_up(_LAST_SECONDS)
        self._watch.close()
        for tracker in self._trackers:
            tracker.close()
        if self.process is not None:
            self.process.close()
        self.tell("finished", force=True)
        self._folder.close()


class Feed:
    """The thread, its queue, and what it feeds. On a rank other than 0 it only sends the losses."""

    def __init__(self, sink: Sink | None, ranks: RankLosses | None, tolerance: Tolerance) -> None:
        self._sink, self._ranks = sink, ranks
        self._queue: deque[StepStats] = deque(maxlen=_MOST_WAITING)
        self._held: deque[tuple[float, StepStats]] = deque()
        self._closing = threading.Event()
        self._pass = tolerance.shield("the record of steps", self._one_pass)
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="forkcast-feed", daemon=True)
        self._thread.start()

    def put(self, stats: StepStats) -> None:
        """Never waits."""
        self._queue.append(stats)

    def _run(self) -> None:
        while not self._closing.wait(_PASS_SECONDS):
            self._pass()

    def _one_pass(self) -> None:
        if self._sink is not None:
            self._sink.look()
        now = time.monotonic()
        while self._queue:
            stats = self._queue.popleft()
            if self._ranks is not None:
                self._ranks.add(stats.step, stats.loss)
            if self._sink is not None:
                self._held.append((now, stats))
        if self._ranks is not None:
            self._ranks.flush()
            if self._held:
                self._ranks.collect()
        self._release(now)

    def _release(self, now: float, patience: float = _PATIENCE_SECONDS) -> None:
        """Pass on what is complete, in order."""
        assert self._sink is not None or not self._held
        while self._held and self._sink is not None:
            since, stats = self._held[0]
            if self._ranks is not None:
                missing = self._ranks.missing(stats.step)
                if missing and now - since < patience:
                    return
                if missing and not self._warned:
                    self._warned = True
                    log.warning("%d ranks told no loss of step %d", missing, stats.step)
                stats = replace(stats, loss=self._ranks.mean(stats.step))
            self._held.popleft()
            self._sink.take(stats)

    def close(self) -> None:
        """Pass on what is left; afterwards no thread and no process of it is there."""
        self._closing.set()
        self._thread.join()
        end = time.monotonic() + _LAST_SECONDS
        self._pass()
        while self._held and time.monotonic() < end:
            time.sleep(_PASS_SECONDS / 10)
            self._pass()
        self._release(math.inf)
        if self._sink is not None:
            self._sink.close()


def register(target: str, folder: RunFolder) -> bool:
    """Tell a monitor elsewhere of the run; whether it knows it now."""
    one = folder.registration
    request = pb.RegisterRunRequest(
        run_uid=one.run_uid,
        name=one.name,
        namespace=one.namespace,
        uncertainty_json=one.uncertainty,
        mode=one.mode,
        total_steps=one.total_steps,
    )
    try:
        with open_channel(target) as channel:
            MonitorStub(channel).RegisterRun(request, timeout=_REGISTER_SECONDS)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            log.info("the monitor at %s does not answer; it is asked again", target)
            return False
        # it may have been registered by somebody who may: the stream will show
        log.warning("not registered at %s: %s", target, error.details())
        return True
    except ValueError as error:
        log.warning("no connection to the monitor at %s: %s", target, error)
        return True
    return True


def quiet_log() -> Any:
    """For the reporter, in a process whose output is the user's: below what is shown by default."""

    def words(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
        return f"{event.pop('event')} {event}"

    detail = log.getChild("stream").debug
    return structlog.wrap_logger(SimpleNamespace(info=detail, warning=detail), processors=[words])
