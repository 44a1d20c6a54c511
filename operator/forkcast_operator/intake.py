"""Triggers become branches, or records of why they did not. Everything stands in the store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from enum import Enum

import structlog

from forkcast.branch import Finished, Forking, Phase, branch_name
from forkcast.ports import Store
from forkcast.records import Trigger
from forkcast_operator.branch_records import BranchRecord, Suppression, load_phase
from forkcast_operator.rules import branch_rules
from forkcast_wire import keys
from forkcast_wire.documents import lineage_head
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.store import AlreadyExists, put_document, read_document

_log = structlog.get_logger()
_PER_STEPS = 100_000


class Received(Enum):
    """What became of a trigger."""

    KNOWN = "Known"
    OPENED = "Opened"
    SUPPRESSED = "Suppressed"


class Intake:
    """The branches of one run: which are open, and what a trigger leads to."""

    def __init__(
        self,
        name: str,
        store: Store,
        *,
        hold_main: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """name: the run's. hold_main: of the rules a branch is opened with. now: Unix seconds."""
        self._name, self._store, self._hold_main, self._now = name, store, hold_main, now
        self._records: dict[str, BranchRecord] = {}  # written once, so read once
        self._finished: set[str] = set()  # a finished branch stays so: no need to look again

    def phase(self, record: BranchRecord) -> Phase:
        """Where the branch stands."""
        return load_phase(self._store, record.trigger.id) or Forking(
            branch=record.name, trigger=record.trigger
        )

    def records(self) -> list[BranchRecord]:
        """All branches ever opened, in key order."""
        found = []
        for info in self._store.list("branches/"):
            if info.key.endswith("/branch.json") and (record := self._record(info.key)):
                found.append(record)
        return found

    def active(self) -> list[BranchRecord]:
        """The branches that have not finished."""
        found = []
        for info in self._store.list("branches/"):
            if info.key in self._finished or not info.key.endswith("/branch.json"):
                continue
            record = self._record(info.key)
            if record is None:
                continue
            if isinstance(load_phase(self._store, record.trigger.id), Finished):
                self._finished.add(info.key)
            else:
                found.append(record)
        return found

    def _record(self, key: str) -> BranchRecord | None:
        if key not in self._records:
            record = read_document(self._store, BranchRecord, key)
            if record is None:
                return None
            self._records[key] = record
        return self._records[key]

    def receive(self, spec: TrainingRunSpec, trigger: Trigger) -> tuple[Received, str]:
        """Open a branch for a trigger, or record why not; a known one is left alone. Returns what
        became of it, with the branch's name or the reason.
        """
        store = self._store
        if store.head(keys.branch_file(trigger.id, "branch")) is not None:
            return Received.KNOWN, ""
        if store.head(keys.suppressed(trigger)) is not None:
            return Received.KNOWN, ""
        reason = self._refusal(spec, trigger)
        if reason is None:
            try:
                rules = branch_rules(spec, trigger, hold_main=self._hold_main)
            except ValueError:
                reason = "EndOfRun"
            else:
                name = branch_name(self._name, trigger)
                record = BranchRecord(
                    name=name, trigger=trigger, rules=rules, opened_at=self._now()
                )
                try:
                    put_document(store, keys.branch_file(trigger.id, "branch"), record)
                except AlreadyExists:
                    return Received.KNOWN, ""
                _log.info("branch.opened", branch=name, rule=trigger.rule.value)
                return Received.OPENED, name
        with contextlib.suppress(AlreadyExists):  # another operator was first; its reason stands
            put_document(
                store, keys.suppressed(trigger), Suppression(trigger=trigger, reason=reason)
            )
        _log.info("trigger.suppressed", trigger=trigger.id, reason=reason)
        return Received.SUPPRESSED, reason

    def _refusal(self, spec: TrainingRunSpec, trigger: Trigger) -> str | None:
        branching = spec.branching
        if branching.mode in (Mode.OBSERVE, Mode.DISABLED):
            return "Mode"
        if self._store.head(keys.COMPLETE) is not None:
            return "RunFinished"
        head = lineage_head(self._store)
        if (head.epoch if head else 0) > trigger.epoch:
            return "StaleEpoch"
        if self.active():
            return "BranchActive"
        opened = [i for i in self._store.list("branches/") if i.key.endswith("/branch.json")]
        rate = branching.budget.max_per_hundred_thousand_steps
        allowed = max(1, -(-rate * max(trigger.step, _PER_STEPS) // _PER_STEPS))
        if len(opened) >= min(branching.budget.max_branches, allowed):
            return "Budget"
        return None
