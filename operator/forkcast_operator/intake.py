"""Triggers become branches, or records of why they did not. Everything stands in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum

import structlog

from forkcast import loan
from forkcast.admission import Budget, Open, Refusal, RunSeen, Suppress, admit
from forkcast.branch import branch_name
from forkcast.branch_rules import BranchRules
from forkcast.phases import Finished, Phase
from forkcast.ports import Store
from forkcast.records import Trigger, TriggerRule
from forkcast_operator import clock
from forkcast_operator.rules import branch_rules
from forkcast_wire import branches, keys
from forkcast_wire.branches import BranchRecord, Suppression
from forkcast_wire.completion import completion
from forkcast_wire.documents import DocumentError, lineage_entries, lineage_head
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.store import AlreadyExists, put_document

_log = structlog.get_logger()


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
        now: Callable[[], float] = clock.now,
    ) -> None:
        """name: the run's. hold_main: of the rules a branch is opened with. now: Unix seconds."""
        self._name, self._store, self._hold_main, self._now = name, store, hold_main, now
        self._records: dict[str, BranchRecord] = {}  # written once, so read once
        self._damaged: set[str] = set()  # told once
        self._finished: set[str] = set()  # a finished branch stays so: no need to look again

    def records(self) -> list[BranchRecord]:
        """All branches ever opened, in key order, but for those whose branch.json is damaged."""
        found = (self._record(trigger_id) for trigger_id in branches.opened(self._store))
        return [record for record in found if record is not None]

    def active(self) -> list[tuple[BranchRecord, Phase]]:
        """The branches that have not finished, in key order, and the phase of each. One whose
        branch.json is damaged is left out: its rules are lost.
        """
        found: list[tuple[BranchRecord, Phase]] = []
        for trigger_id in branches.opened(self._store):
            if trigger_id in self._finished or (record := self._record(trigger_id)) is None:
                continue
            phase = self._phase(record)
            if isinstance(phase, Finished):
                self._finished.add(trigger_id)
            else:
                found.append((record, phase))
        return found

    def _record(self, trigger_id: str) -> BranchRecord | None:
        if trigger_id not in self._records:
            try:
                record = branches.record_of(self._store, trigger_id)
            except DocumentError as error:  # nothing can be done for it; the others go on
                if trigger_id not in self._damaged:
                    _log.error("branch.record_damaged", trigger=trigger_id, error=str(error))
                self._damaged.add(trigger_id)
                return None
            if record is None:
                return None
            self._records[trigger_id] = record
        return self._records[trigger_id]

    def _phase(self, record: BranchRecord) -> Phase:
        """As saved; a branch whose phase is damaged is found again from its other records."""
        try:
            saved = branches.saved_phase(self._store, record.trigger.id)
        except DocumentError as error:
            _log.warning("branch.phase_damaged", branch=record.name, error=str(error))
            saved = None
        return saved or branches.first_phase(record)

    def receive(
        self, spec: TrainingRunSpec, triggers: Sequence[Trigger]
    ) -> list[tuple[Received, str]]:
        """Give triggers their verdicts, in order; each is durable before the next is looked at. One
        that has its verdict is left alone. Returns for each what became of it, with the branch's
        name or the reason.
        """
        if not triggers:
            return []
        seen, budget, told = self._look(spec.training.total_steps), _budget(spec), []
        for trigger in triggers:
            rules = self._rules(spec, trigger)
            fits, owed = rules is not None, self._owed(spec, trigger)
            verdict = admit(trigger, seen, budget, fits=fits, owed=owed)
            if isinstance(verdict, Suppress):
                told.append((Received.SUPPRESSED, self._suppress(trigger, verdict.reason)))
                seen = replace(seen, suppressed=seen.suppressed | {trigger.id})
            elif isinstance(verdict, Open) and rules is not None:
                told.append(self._open(trigger, rules.within(verdict.allowance)))
                seen = replace(
                    seen,
                    opened=seen.opened | {trigger.id},
                    active=seen.active | {trigger.id},
                    tried=(*seen.tried, trigger),
                )
            else:
                told.append((Received.KNOWN, ""))
        return told

    def _look(self, total_steps: int) -> RunSeen:
        """What the store shows of the run; the names of its branches and triggers are ids."""
        head = lineage_head(self._store)
        return RunSeen(
            finished=completion(self._store, total_steps) is not None,
            epoch=head.epoch if head else 0,
            opened=frozenset(branches.opened(self._store)),
            active=frozenset(record.trigger.id for record, _ in self.active()),
            suppressed=frozenset(
                info.key.rpartition("/")[2].removesuffix(".json")
                for info in self._store.list(keys.SUPPRESSED_PREFIX)
            ),
            tried=tuple(record.trigger for record in self.records()),
        )

    def _rules(self, spec: TrainingRunSpec, trigger: Trigger) -> BranchRules | None:
        try:
            return branch_rules(spec, trigger, hold_main=self._hold_main)
        except ValueError:
            return None

    def _owed(self, spec: TrainingRunSpec, trigger: Trigger) -> bool:
        """Whether a trigger that offers to pay back finds a cut of the rate; the ladder never does."""
        if trigger.rule is not TriggerRule.CALM:
            return True
        if spec.branching.policy == "Ladder":
            return False
        return bool(loan.repayments(lineage_entries(self._store), trigger.epoch))

    def _open(self, trigger: Trigger, rules: BranchRules) -> tuple[Received, str]:
        name = branch_name(self._name, trigger)
        record = BranchRecord(name=name, trigger=trigger, rules=rules, opened_at=self._now())
        try:
            put_document(self._store, keys.branch_file(trigger.id, "branch"), record)
        except AlreadyExists:  # another operator was first; its record stands
            return Received.KNOWN, ""
        allowed = rules.allowance.words if rules.allowance is not None else ""
        _log.info("branch.opened", branch=name, rule=trigger.rule.value, allowed=allowed)
        return Received.OPENED, name

    def _suppress(self, trigger: Trigger, reason: Refusal) -> str:
        suppression = Suppression(trigger=trigger, reason=reason)
        with contextlib.suppress(AlreadyExists):  # another operator was first; its reason stands
            put_document(self._store, keys.suppressed(trigger), suppression)
        _log.info("trigger.suppressed", trigger=trigger.id, reason=reason.value)
        return reason.value


def _budget(spec: TrainingRunSpec) -> Budget:
    branching = spec.branching
    return Budget(
        branches=branching.mode in (Mode.DRY_RUN, Mode.ENFORCE),
        max_branches=branching.budget.max_branches,
        max_per_hundred_thousand_steps=branching.budget.max_per_hundred_thousand_steps,
        candidates=None if branching.policy == "Ladder" else branching.top_k,
        total_steps=spec.training.total_steps,
    )
