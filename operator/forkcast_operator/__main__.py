"""`python -m forkcast_operator`: triggers to branches, branches to their end, on one machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from forkcast import loan
from forkcast.branch import Finished, Forking, Phase, branch_name
from forkcast.loop import reconcile
from forkcast.ports import Store
from forkcast.records import Trigger, TriggerRule
from forkcast_operator.local import BranchRecord, LocalWorld, MonitorUnavailableError, load_phase
from forkcast_operator.rules import branch_rules
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import keys
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import trigger_from_wire
from forkcast_wire.documents import RunInfo, lineage_entries, lineage_head, load
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import Mode, TrainingRun, TrainingRunSpec
from forkcast_wire.process import configure_logging, die_with_parent, stop_event_on_sigterm
from forkcast_wire.store import AlreadyExists, StoreError, open_store, put_document, read_document

_log = structlog.get_logger()
_ACTIVE_SECONDS, _IDLE_SECONDS = 0.05, 0.5
_PER_STEPS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """suppressed/<trigger>.json: a trigger that opened no branch, and why."""

    trigger: Trigger
    reason: str


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
        self.spec, self.info, self.store, self.workdir = spec, info, store, workdir
        self._monitor = MonitorStub(open_channel(monitor))
        self._proxy = ProxyStub(open_channel(proxy)) if proxy else None
        self._pending: list[Trigger] = []
        self._wake = threading.Event()
        self._finished: set[str] = set()  # a finished branch stays so: no need to look again

    def watch(self, stop: threading.Event) -> None:
        """Collect triggers; the stream starts over from the first one, whoever restarts."""
        while not stop.is_set():
            try:
                request = pb.WatchTriggersRequest(run_uid=self.info.uid, after=0)
                for event in self._monitor.WatchTriggers(request, wait_for_ready=True):
                    self._pending.append(trigger_from_wire(event.trigger))
                    self._wake.set()
            except grpc.RpcError:
                stop.wait(_IDLE_SECONDS)

    def work(self) -> bool:
        """One pass over what there is; True while a branch is active."""
        while self._pending:
            self._receive(self._pending[0])
            self._pending.pop(0)
        active = self._active()
        for record in active:
            world = LocalWorld(
                self.spec, self.store, record, self._monitor, self._proxy, self.workdir
            )
            phase: Phase = load_phase(self.store, record.trigger.id) or Forking(
                branch=record.name, trigger=record.trigger
            )
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

    def _active(self) -> list[BranchRecord]:
        found = []
        for info in self.store.list("branches/"):
            if info.key in self._finished or not info.key.endswith("/branch.json"):
                continue
            record = read_document(self.store, BranchRecord, info.key)
            if record is None:
                continue
            done = load_phase(self.store, record.trigger.id)
            if isinstance(done, Finished):
                self._finished.add(info.key)
            else:
                found.append(record)
        return found

    def _receive(self, trigger: Trigger) -> None:
        """Open a branch for a trigger, or record why not; a known one is left alone."""
        if self.store.head(keys.branch_file(trigger.id, "branch")) is not None:
            return
        if self.store.head(keys.suppressed(trigger)) is not None:
            return
        reason = self._refusal(trigger)
        if reason is None:
            try:
                record = BranchRecord(
                    name=branch_name(self.info.name, trigger),
                    trigger=trigger,
                    rules=branch_rules(self.spec, trigger),
                    opened_at=time.time(),
                )
            except ValueError:
                reason = "EndOfRun"
            else:
                try:
                    put_document(self.store, keys.branch_file(trigger.id, "branch"), record)
                except AlreadyExists:
                    return
                _log.info("branch.opened", branch=record.name, rule=trigger.rule.value)
                return
        suppression = Suppression(trigger=trigger, reason=reason)
        with contextlib.suppress(AlreadyExists):  # another operator was first; its reason stands
            put_document(self.store, keys.suppressed(trigger), suppression)
        _log.info("trigger.suppressed", trigger=trigger.id, reason=reason)

    def _owed(self, trigger: Trigger) -> bool:
        """Whether there is a cut of the learning rate to pay back; the ladder never does."""
        if self.spec.branching.policy == "Ladder":
            return False
        return bool(loan.repayments(lineage_entries(self.store), trigger.epoch))

    def _refusal(self, trigger: Trigger) -> str | None:
        branching = self.spec.branching
        if branching.mode in (Mode.OBSERVE, Mode.DISABLED):
            return "Mode"
        if self.store.head(keys.COMPLETE) is not None:
            return "RunFinished"
        head = lineage_head(self.store)
        if (head.epoch if head else 0) > trigger.epoch:
            return "StaleEpoch"
        if trigger.rule is TriggerRule.CALM and not self._owed(trigger):
            return "NoLoan"
        if self._active():
            return "BranchActive"
        opened = [i for i in self.store.list("branches/") if i.key.endswith("/branch.json")]
        rate = branching.budget.max_per_hundred_thousand_steps
        allowed = max(1, -(-rate * max(trigger.step, _PER_STEPS) // _PER_STEPS))
        if len(opened) >= min(branching.budget.max_branches, allowed):
            return "Budget"
        return None


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
    stop = stop_event_on_sigterm()
    spec = TrainingRun.model_validate(json.loads(given.manifest.read_text())).spec
    info = load(RunInfo, (given.workdir / keys.RUN).read_bytes())
    store = open_store(spec.storage, given.workdir)
    operator = LocalOperator(spec, info, store, given.workdir, given.monitor, given.proxy)
    threading.Thread(target=operator.watch, args=(stop,), daemon=True).start()
    while not stop.is_set():
        try:
            active = operator.work()
        except (StoreError, MonitorUnavailableError) as error:
            _log.warning("operator.retry", error=f"{type(error).__name__}: {error}")
            active = False
        operator.wait(_ACTIVE_SECONDS if active else _IDLE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
