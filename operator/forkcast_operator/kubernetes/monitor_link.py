"""The operator's side of the monitor: runs registered, triggers collected, summaries at hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple

import grpc
import structlog

from forkcast.directives import CheckpointNow
from forkcast.records import Trigger
from forkcast_operator.kubernetes.run import Run
from forkcast_operator.unreadable import Reader
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.client_security import handshake_trouble
from forkcast_wire.codec import directive_to_wire, summary_from_wire, trigger_from_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.manifest import TrainingRunSpec

T = TypeVar("T")
A = TypeVarTuple("A")
#: Calls to the monitor have threads of their own: one that does not answer holds up nothing else.
_THREADS: Final = ThreadPoolExecutor(16, thread_name_prefix="monitor")
_log = structlog.get_logger()
_RPC_SECONDS: Final = 5.0
_LIST_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0


async def in_thread(call: Callable[[*A], T], *arguments: *A) -> T:
    """Make a blocking call of the link's in one of its threads."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call, *arguments)


class MonitorLink:
    """Thread-safe. ``wake`` is called, from a thread, with the uid of a run that has a trigger.
    ``own_expired``: which of the operator's own certificate files for the monitor have expired.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        wake: Callable[[str], None],
        own_expired: Callable[[], list[str]] = list,
    ) -> None:
        self.stub = MonitorStub(channel)
        self._channel, self._wake, self._own_expired = channel, wake, own_expired
        self._trouble = ""
        self._lock = threading.Lock()
        self._registered: dict[str, str] = {}
        self._objects: dict[str, str] = {}
        self._saved: dict[str, str] = {}
        self._pending: dict[str, dict[str, Trigger]] = {}
        self._summaries: dict[str, pb.RunSummary] = {}
        self._trigger_reader = Reader("monitor.trigger_unreadable")
        self._summary_reader = Reader("monitor.summary_unreadable")
        self._stop = threading.Event()
        self._heard = 0.0
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("triggers", self._watch), ("summaries", self._list))
        ]

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads and the channel."""
        self._stop.set()
        self._channel.close()

    # --------------------------------------------------------------------------------------- runs

    def register(self, run: Run, spec: TrainingRunSpec) -> str:
        """See that the monitor serves the run, as its manifest says now; returns why it does not,
        "" where it does.
        """
        uncertainty = spec.uncertainty.model_dump_json(by_alias=True, exclude_none=True)
        request = pb.RegisterRunRequest(
            run_uid=run.identity,
            name=run.name,
            namespace=run.namespace,
            uncertainty_json=json.dumps(json.loads(uncertainty), sort_keys=True),
            mode=spec.branching.mode.value,
            total_steps=spec.training.total_steps,
        )
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        with self._lock:
            if self._registered.get(run.identity) == digest:
                return ""
        try:
            self.stub.RegisterRun(request, timeout=_RPC_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        with self._lock:
            self._registered[run.identity] = digest
            self._objects[run.identity] = run.uid
        return ""

    def save_now(self, run: Run) -> None:
        """Have the trainer save a checkpoint, once for each value of the annotation that asks for it.
        A monitor that is away is asked again at the next pass.
        """
        with self._lock:
            if not run.checkpoint or self._saved.get(run.identity) == run.checkpoint:
                return
        directive = directive_to_wire(run.identity, CheckpointNow.asked_by(run.checkpoint))
        try:
            request = pb.PostDirectiveRequest(directive=directive)
            self.stub.PostDirective(request, timeout=_RPC_SECONDS)
        except grpc.RpcError as error:
            _log.info("monitor.checkpoint_not_asked_for", code=error.code().name)
            return
        with self._lock:
            self._saved[run.identity] = run.checkpoint

    def holds(self, run: Run) -> bool:
        """Whether the monitor may be asked about ``run.identity`` on the run's behalf. An identity
        that is not the run's uid comes from its records, which the run's own pods can write: it
        counts once the monitor, which knows the namespace of every run, has registered it.
        """
        with self._lock:
            return run.identity == run.uid or self._objects.get(run.identity) == run.uid

    def forget(self, uid: str) -> None:
        """Let the monitor delete what it holds of the run; a monitor that is away keeps it."""
        with self._lock:
            self._objects.pop(uid, None)
            self._registered.pop(uid, None)
            self._pending.pop(uid, None)
            self._summaries.pop(uid, None)
        try:
            self.stub.ForgetRun(pb.ForgetRunRequest(run_uid=uid), timeout=_RPC_SECONDS)
        except grpc.RpcError as error:
            _log.warning("monitor.not_forgotten", run_uid=uid, code=error.code().name)

    def summary(self, uid: str) -> pb.RunSummary | None:
        """The run as the monitor last told of it, None where it has not, or long ago."""
        with self._lock:
            fresh = time.monotonic() - self._heard < 6 * _LIST_SECONDS
            return self._summaries.get(uid) if fresh else None

    def handshake_trouble(self, error: str) -> str:
        """Why the monitor is not spoken to, by a call's status code and details, if certificates are
        the reason; "" otherwise.
        """
        if not error.startswith(grpc.StatusCode.UNAVAILABLE.name):
            return ""
        if own := self._own_expired():
            return (
                f"the operator's own {' and '.join(own)} for the monitor: certificate has expired"
            )
        found = handshake_trouble(error)
        return f"the monitor's certificate is refused: {found}" if found else ""

    def trouble(self) -> str:
        """What certificates have to do with it that the monitor was not heard last, "" for nothing."""
        with self._lock:
            return self._trouble

    def triggers(self, uid: str) -> list[Trigger]:
        """Those not yet settled, oldest first."""
        with self._lock:
            return list(self._pending.get(uid, {}).values())

    def hear(self, trigger: Trigger) -> None:
        """A trigger has fired, or is told of again."""
        with self._lock:
            self._pending.setdefault(trigger.run_uid, {})[trigger.id] = trigger
            uid = self._objects.get(trigger.run_uid, trigger.run_uid)
        self._wake(uid)

    def settled(self, uid: str, trigger: Trigger) -> None:
        """A branch, or the record of why there is none, stands in the store."""
        with self._lock:
            self._pending.get(uid, {}).pop(trigger.id, None)

    # ------------------------------------------------------------------------------------ threads

    def _watch(self) -> None:
        """Every trigger of every run, from the first; the store knows which are settled. One that
        cannot be read is left out: the others count.
        """
        while not self._stop.is_set():
            with contextlib.suppress(
                grpc.RpcError, ValueError
            ):  # ValueError: the channel is closed
                request = pb.WatchTriggersRequest()
                for event in self.stub.WatchTriggers(request, wait_for_ready=True):
                    trigger = self._trigger_reader.read(trigger_from_wire, event.trigger)
                    if trigger is not None:
                        self.hear(trigger)
            self._stop.wait(_RETRY_SECONDS)  # after an end without an error, too

    def _list(self) -> None:
        while not self._stop.wait(_LIST_SECONDS):
            try:
                reply = self.stub.ListRuns(pb.ListRunsRequest(), timeout=_RPC_SECONDS)
            except grpc.RpcError as error:
                self._unheard(f"{error.code().name}: {error.details()}")
                continue
            except ValueError:
                continue
            read = [self._summary_reader.read(summary_from_wire, run) for run in reply.runs]
            known = {run.run_uid for run in reply.runs}
            with self._lock:
                self._trouble = ""
                self._heard = time.monotonic()
                self._summaries = {run.run_uid: run for run in read if run is not None}
                for uid in [uid for uid in self._registered if uid not in known]:
                    del self._registered[uid]  # the monitor lost its state: register again

    def _unheard(self, error: str) -> None:
        trouble = self.handshake_trouble(error)
        with self._lock:
            before, self._trouble = self._trouble, trouble
        if trouble and trouble != before:
            _log.error("monitor.not_reached", reason=trouble, remedy="renew the certificate")
