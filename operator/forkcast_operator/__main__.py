"""`python -m forkcast_operator`: triggers to branches, branches to their end, on one machine."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import contextlib
import sys
import threading
from pathlib import Path

import grpc
import structlog

from forkcast.loop import reconcile
from forkcast.ports import Store
from forkcast.records import Trigger
from forkcast_operator.intake import Intake
from forkcast_operator.local import LocalWorld
from forkcast_operator.stored import MonitorUnavailableError
from forkcast_operator.unreadable import Reader
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import keys
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import trigger_from_wire
from forkcast_wire.documents import DocumentError, RunInfo, load
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.newer import read_resolved
from forkcast_wire.process import (
    alone,
    configure_logging,
    die_with_parent,
)
from forkcast_wire.store import (
    Remembered,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
    open_store,
    wait_for,
)

_log = structlog.get_logger()
#: Between two passes while a branch is open, and while none is; in a bucket each pass costs money,
#: and a trigger ends the wait.
_ACTIVE_SECONDS, _IDLE_SECONDS = 0.05, 0.5
_BUCKET_ACTIVE_SECONDS, _BUCKET_IDLE_SECONDS = 1.0, 5.0


class LocalOperator:
    """The operator of one run. Everything it knows it reads from the store and the monitor."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        info: RunInfo,
        store: Store,
        workdir: Path,
        monitor: str,
        proxy: str,
    ) -> None:
        self.spec, self.info, self.workdir = spec, info, workdir
        self.store = Remembered(store)
        self._monitor = MonitorStub(open_channel(monitor))
        self._proxy = ProxyStub(open_channel(proxy)) if proxy else None
        self._pending: list[Trigger] = []
        self._reader = Reader("monitor.trigger_unreadable")
        self._wake = threading.Event()
        self._intake = Intake(info.name, self.store, hold_main=True)

    def watch(self, stop: threading.Event) -> None:
        """Collect triggers; the stream starts over from the first one after any restart. A trigger
        that cannot be read is left out.
        """
        while not stop.is_set():
            with contextlib.suppress(grpc.RpcError):
                request = pb.WatchTriggersRequest(run_uid=self.info.uid, after=0)
                for event in self._monitor.WatchTriggers(request, wait_for_ready=True):
                    trigger = self._reader.read(trigger_from_wire, event.trigger)
                    if trigger is not None:
                        self._pending.append(trigger)
                        self._wake.set()
            stop.wait(_IDLE_SECONDS)  # after an end without an error, too

    def work(self) -> bool:
        """One pass over what there is; True while a branch is active."""
        self.store.refresh()
        come = list(self._pending)
        self._intake.receive(self.spec, come)
        del self._pending[: len(come)]
        active = self._intake.active()
        for record, saved in active:
            world = LocalWorld(
                self.spec,
                self.store,
                record,
                self._monitor,
                self._proxy,
                self.workdir,
                direct=self.store.direct,
            )
            phase = saved
            while True:
                following = reconcile(world, phase, record.rules)
                if following == phase:
                    break
                _log.info("branch.phase", branch=record.name, phase=type(following).__name__)
                phase = following
        return bool(active)

    def wait(self, seconds: float) -> None:
        """Until a trigger comes, at most ``seconds``."""
        self._wake.wait(seconds)
        self._wake.clear()


def main() -> int:
    """Until SIGTERM; 0."""
    parser = argparse.ArgumentParser(prog="forkcast_operator", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="resolved manifest, JSON")
    parser.add_argument("--workdir", type=Path, default=Path(), help="the run's folder")
    parser.add_argument("--monitor", required=True, help="gRPC target of the monitor")
    parser.add_argument("--proxy", default="", help="gRPC target of the proxy; '' for none")
    given = parser.parse_args()
    configure_logging("operator")
    die_with_parent()
    stop = termination.stop_event_on_sigterm()
    if not alone(given.workdir / "operator.lock", stop):
        return 0
    spec = read_resolved(given.manifest.read_text()).spec
    info = load(RunInfo, (given.workdir / keys.RUN).read_bytes())
    try:
        store = wait_for(lambda: open_store(spec.storage, given.workdir), stop)
    except StoreUnavailable:  # told to leave while the store was away
        return 0
    except StoreMisconfigured as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    operator = LocalOperator(spec, info, store, given.workdir, given.monitor, given.proxy)
    threading.Thread(target=operator.watch, args=(stop,), daemon=True).start()
    busy, idle = _ACTIVE_SECONDS, _IDLE_SECONDS
    if spec.storage.bucket is not None:
        busy, idle = _BUCKET_ACTIVE_SECONDS, _BUCKET_IDLE_SECONDS
    while not stop.is_set():
        try:
            active = operator.work()
        except (StoreError, MonitorUnavailableError, DocumentError) as error:
            _log.warning("operator.retry", error=f"{type(error).__name__}: {error}")
            active = False
        operator.wait(busy if active else idle)
    return 0


if __name__ == "__main__":
    termination.leave(main())
