"""`python -m forkcast_operator`: triggers to branches, branches to their end, on one machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import structlog

from forkcast import loan
from forkcast.admission import Budget, Open, Refusal, RunSeen, Suppress, admit
from forkcast.branch import BranchRules, Finished, Forking, Phase, branch_name
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
from forkcast_wire.process import (
    alone,
    configure_logging,
    die_with_parent,
    stop_event_on_sigterm,
)
from forkcast_wire.store import AlreadyExists, StoreError, open_store, put_document, read_document

_log = structlog.get_logger()
_ACTIVE_SECONDS, _IDLE_SECONDS = 0.05, 0.5


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
        budget = spec.branching.budget
        self._budget = Budget(
            branches=spec.branching.mode in (Mode.DRY_RUN, Mode.ENFORCE),
            max_branches=budget.max_branches,
            max_per_hundred_thousand_steps=budget.max_per_hundred_thousand_steps,
        )

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
        if self._pending:
            self._admit()
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

    def _look(self) -> RunSeen:
        """What the store shows of the run; the names of its branches and triggers are ids."""
        head = lineage_head(self.store)
        return RunSeen(
            finished=self.store.head(keys.COMPLETE) is not None,
            epoch=head.epoch if head else 0,
            opened=frozenset(
                info.key.split("/")[1]
                for info in self.store.list("branches/")
                if info.key.endswith("/branch.json")
            ),
            active=frozenset(record.trigger.id for record in self._active()),
            suppressed=frozenset(
                info.key.rpartition("/")[2].removesuffix(".json")
                for info in self.store.list(keys.SUPPRESSED_PREFIX)
            ),
        )

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

    def _admit(self) -> None:
        """Give the triggers that have come their verdicts, in order; each is durable before the
        next is looked at. One that has its verdict is left alone.
        """
        seen = self._look()
        while self._pending:
            trigger = self._pending[0]
            rules = self._rules(trigger)
            fits, owed = rules is not None, self._owed(trigger)
            verdict = admit(trigger, seen, self._budget, fits=fits, owed=owed)
            if isinstance(verdict, Suppress):
                self._suppress(trigger, verdict.reason)
                seen = replace(seen, suppressed=seen.suppressed | {trigger.id})
            elif isinstance(verdict, Open) and rules is not None:
                self._open(trigger, rules)
                seen = replace(
                    seen, opened=seen.opened | {trigger.id}, active=seen.active | {trigger.id}
                )
            self._pending.pop(0)

    def _rules(self, trigger: Trigger) -> BranchRules | None:
        try:
            return branch_rules(self.spec, trigger)
        except ValueError:
            return None

    def _open(self, trigger: Trigger, rules: BranchRules) -> None:
        record = BranchRecord(
            name=branch_name(self.info.name, trigger),
            trigger=trigger,
            rules=rules,
            opened_at=time.time(),
        )
        with contextlib.suppress(AlreadyExists):  # another operator was first; its record stands
            put_document(self.store, keys.branch_file(trigger.id, "branch"), record)
            _log.info("branch.opened", branch=record.name, rule=trigger.rule.value)

    def _suppress(self, trigger: Trigger, reason: Refusal) -> None:
        suppression = Suppression(trigger=trigger, reason=reason.value)
        with contextlib.suppress(AlreadyExists):  # another operator was first; its reason stands
            put_document(self.store, keys.suppressed(trigger), suppression)
        _log.info("trigger.suppressed", trigger=trigger.id, reason=reason.value)

    def _owed(self, trigger: Trigger) -> bool:
        """Whether a trigger that offers to pay back finds a cut of the rate; the ladder never does."""
        if trigger.rule is not TriggerRule.CALM:
            return True
        if self.spec.branching.policy == "Ladder":
            return False
        return bool(loan.repayments(lineage_entries(self.store), trigger.epoch))


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
    if not alone(given.workdir / "operator.lock", stop):
        return 0
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
