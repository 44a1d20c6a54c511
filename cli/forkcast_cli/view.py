"""What a work directory shows of its run: progress, statistics, branches. Reads, never writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkcast.admission import Refusal
from forkcast.branch import Finished
from forkcast.decision import Decision
from forkcast.lineage import LineageEntry
from forkcast.records import Trial, Trigger
from forkcast_cli.workdir import read_manifest, read_progress
from forkcast_wire import branches, keys
from forkcast_wire.branches import StoredBranch, Suppression
from forkcast_wire.completion import completion
from forkcast_wire.documents import Complete, DocumentError, lineage_entries, load_at
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import load_manifest
from forkcast_wire.store import Remembered, StoreUnavailable, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """One branch: its trigger, phase, decision (if there is one) and trials by candidate.

    outcome, reason: how it ended and why; None and "" while it is open.
    edited: the decision is not the one whose digest the lineage or the outcome recorded.
    """

    id: str
    trigger: Trigger
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
            phase=type(phase).__name__,
            outcome=over.outcome.value if over else None,
            reason=over.reason.value if over else "",
            decision=decision,
            trials={name: dict(seen.trials) for name, seen in branch.rollouts.items()},
            edited=decision is not None and not recorded <= {decision.digest},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One look at a run.

    complete: its end, None while it has not taken all steps wanted now. away: why the store does
    not answer; then branches, suppressed, lineage and complete are empty, not known to be so.
    damaged: what is wrong with each document that is left out because it cannot be read.
    """

    manifest: TrainingRun
    progress: dict[str, Any]
    branches: list[BranchView]
    suppressed: list[Suppression]
    lineage: list[LineageEntry]
    complete: Complete | None
    away: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def active(self) -> int:
        """Branches that have not ended."""
        return sum(1 for one in self.branches if one.outcome is None)

    @property
    def refused(self) -> list[Suppression]:
        """Triggers that might have opened a branch and did not. A calm one with nothing to pay back
        asked for none.
        """
        return [one for one in self.suppressed if one.reason is not Refusal.NO_LOAN]


class RunReader:
    """Reads a run again and again: its store is opened once, and what cannot change any more, or
    has not changed, is not read again. Never writes.
    """

    def __init__(self, folder: Path) -> None:
        """folder: a work directory, or a manifest in a file. Raises FileNotFoundError where it holds
        no run; StoreMisconfigured, ManifestError.
        """
        self._folder = folder
        self._manifest = load_manifest(folder) if folder.is_file() else read_manifest(folder)
        self._store = Remembered(open_store(self._manifest.spec.storage, folder, write=False))
        self._ended: dict[str, BranchView] = {}

    def progress(self) -> dict[str, Any]:
        """What the trainer last said; empty before its first word."""
        return read_progress(self._folder)

    def look(self) -> RunView:
        """Read the whole view. Raises StoreUnavailable, and DocumentError if a document is damaged."""
        view = self.look_past_damage()
        if view.damaged:
            raise DocumentError(view.damaged[0])
        return view

    def look_past_damage(self) -> RunView:
        """The view without what is damaged: a record of a branch that has long ended must hide
        neither the rest nor the end of the run. Raises StoreUnavailable.
        """
        store, total = self._store, self._manifest.spec.training.total_steps
        store.refresh()
        damaged: list[str] = []
        lineage: list[LineageEntry] = []
        with _noted(damaged):
            lineage = lineage_entries(store)
        found, suppressed = self._branches(lineage, damaged), []
        for info in store.list(keys.SUPPRESSED_PREFIX):
            with _noted(damaged):
                suppressed.append(load_at(store, Suppression, info.key))
        return RunView(
            manifest=self._manifest,
            progress=self.progress(),
            branches=found,
            suppressed=suppressed,
            lineage=lineage,
            complete=completion(store, total),
            damaged=tuple(damaged),
        )

    def look_if_there(self) -> RunView:
        """As `look_past_damage`, or what the folder alone shows while the store is away."""
        try:
            return self.look_past_damage()  # ends with the first operation that is not answered
        except StoreUnavailable as error:
            return self.local(self.progress(), None, error.why)

    def local(self, progress: dict[str, Any], last: RunView | None, away: str) -> RunView:
        """The last view with newer progress; without one, what the folder alone shows."""
        if last is not None:
            return replace(last, progress=progress, away=away)
        return RunView(
            manifest=self._manifest,
            progress=progress,
            branches=[],
            suppressed=[],
            lineage=[],
            complete=None,
            away=away,
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


def look(folder: Path) -> RunView:
    """Read the whole view once; folder: a work directory, or a manifest whose storage section names
    where a run is stored. Raises FileNotFoundError where the folder holds no run, ManifestError.
    """
    return RunReader(folder).look()
