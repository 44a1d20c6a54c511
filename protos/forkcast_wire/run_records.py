"""The records of a run as its store has them: branches, suppressed triggers, lineage. Reads, never writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from forkcast.admission import Refusal
from forkcast.allowance import Allowance
from forkcast.decision import Decision
from forkcast.lineage import LineageEntry
from forkcast.phases import Finished
from forkcast.ports import Store
from forkcast.records import Trial, Trigger
from forkcast_wire import branches, keys
from forkcast_wire.branches import StoredBranch, Suppression
from forkcast_wire.documents import DocumentError, lineage_entries, load_at


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """One branch: its trigger, phase, decision (if there is one) and trials by candidate.

    allowance: what it may cost; None if it was not limited. outcome, reason: how it ended and why; None and "" while it is open.
    edited: the decision is not the one whose digest the lineage or the outcome recorded.
    """

    id: str
    trigger: Trigger
    allowance: Allowance | None
    phase: str
    outcome: str | None
    reason: str
    decision: Decision | None
    trials: dict[str, dict[int, Trial]]
    edited: bool = False

    @classmethod
    def of(cls, branch: StoredBranch, adopted: str | None) -> BranchView:
        """adopted: the digest in the lineage, None if it has no entry of this branch."""
        end, phase, decision = branch.end, branch.phase, branch.decision
        over = end or (phase if isinstance(phase, Finished) else None)
        recorded = {adopted, end.decision_digest if end else None} - {None}
        return cls(
            id=branch.id,
            trigger=branch.record.trigger,
            allowance=branch.record.rules.allowance,
            phase=type(phase).__name__,
            outcome=over.outcome.value if over else None,
            reason=over.reason.value if over else "",
            decision=decision,
            trials={name: dict(seen.trials) for name, seen in branch.rollouts.items()},
            edited=decision is not None and not recorded <= {decision.digest},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """One pass over a run's records. branches: by (epoch, step). lineage: by epoch. damaged: what is
    wrong with each document that is left out because it cannot be read.
    """

    branches: list[BranchView]
    suppressed: list[Suppression]
    lineage: list[LineageEntry]
    damaged: tuple[str, ...]


def refused(suppressed: Iterable[Suppression]) -> list[Suppression]:
    """Triggers that might have opened a branch and did not. A calm one with nothing to pay back
    asked for none.
    """
    return [one for one in suppressed if one.reason is not Refusal.NO_LOAN]


class RecordsReader:
    """Reads a store's records again and again; a branch that has ended is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: dict[str, BranchView] = {}

    def read(self) -> RunRecords:
        """The records without what is damaged. Raises StoreUnavailable."""
        damaged: list[str] = []
        lineage: list[LineageEntry] = []
        suppressed: list[Suppression] = []
        with _noted(damaged):
            lineage = lineage_entries(self._store)
        found = self._branches(lineage, damaged)
        for info in self._store.list(keys.SUPPRESSED_PREFIX):
            with _noted(damaged):
                suppressed.append(load_at(self._store, Suppression, info.key))
        return RunRecords(
            branches=found, suppressed=suppressed, lineage=lineage, damaged=tuple(damaged)
        )

    def _branches(self, lineage: Iterable[LineageEntry], damaged: list[str]) -> list[BranchView]:
        adopted = {(one.epoch - 1, one.trigger_step): one.decision_digest for one in lineage}
        found = []
        for trigger_id in branches.opened(self._store):
            view = self._ended.get(trigger_id)
            with _noted(damaged):
                view = view or self._branch(trigger_id, adopted)
            if view is not None:
                found.append(view)
                if view.outcome is not None and view.phase == Finished.__name__:
                    self._ended[trigger_id] = view
        return sorted(found, key=lambda b: (b.trigger.epoch, b.trigger.step))

    def _branch(self, trigger_id: str, adopted: Mapping[tuple[int, int], str]) -> BranchView | None:
        record = branches.record_of(self._store, trigger_id)
        if record is None:
            return None
        place = (record.trigger.epoch, record.trigger.step)
        return BranchView.of(branches.read(self._store, record), adopted.get(place))


@contextmanager
def _noted(damaged: list[str]) -> Iterator[None]:
    try:
        yield
    except DocumentError as error:
        damaged.append(str(error))
