"""What a work directory shows of its run: progress, statistics, branches. Reads, never writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkcast.lineage import LineageEntry
from forkcast_wire.branches import Suppression
from forkcast_wire.completion import completion
from forkcast_wire.documents import Complete, DocumentError
from forkcast_wire.manifest import Storage, TrainingRun, Uncertainty
from forkcast_wire.manifest_file import load_manifest
from forkcast_wire.run_folder import (
    is_watched,
    read_identity,
    read_manifest,
    read_progress,
    rules_of_watched,
)
from forkcast_wire.run_records import BranchView, RecordsReader, refused
from forkcast_wire.store import Remembered, StoreUnavailable, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One look at a run.

    manifest: None for a watched run, which has none. rules: of its detector. complete: its end, None while it has not taken all steps wanted now. away: why the store does
    not answer; then branches, suppressed, lineage and complete are empty, not known to be so.
    damaged: what is wrong with each document that is left out because it cannot be read.
    """

    name: str
    manifest: TrainingRun | None
    rules: Uncertainty
    progress: dict[str, Any]
    branches: list[BranchView]
    suppressed: list[Suppression]
    lineage: list[LineageEntry]
    complete: Complete | None
    away: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int:
        """Steps that are wanted now; 0 if a watched run has not said."""
        if self.manifest is not None:
            return self.manifest.spec.training.total_steps
        return int(self.progress.get("total_steps") or 0)

    @property
    def of_total(self) -> str:
        """What follows a number of steps: the total, if it is known."""
        return f" of {self.total_steps}" if self.total_steps else ""

    @property
    def storage(self) -> Storage:
        """Where its records are."""
        return Storage() if self.manifest is None else self.manifest.spec.storage

    @property
    def active(self) -> int:
        """Branches that have not ended."""
        return sum(1 for one in self.branches if one.outcome is None)

    @property
    def refused(self) -> list[Suppression]:
        """See `forkcast_wire.run_records.refused`."""
        return refused(self.suppressed)


class RunReader:
    """Reads a run again and again: its store is opened once, and what cannot change any more, or
    has not changed, is not read again. Never writes.
    """

    def __init__(self, folder: Path) -> None:
        """folder: a work directory, that of a watched run, or a manifest in a file. Raises FileNotFoundError where it holds
        no run; StoreMisconfigured, ManifestError.
        """
        self._folder = folder
        self._manifest: TrainingRun | None = None
        if is_watched(folder):
            self._name, storage = read_identity(folder).name, Storage()
            self._rules = rules_of_watched(folder)
        else:
            self._manifest = load_manifest(folder) if folder.is_file() else read_manifest(folder)
            self._name, storage = self._manifest.metadata.name, self._manifest.spec.storage
            self._rules = self._manifest.spec.uncertainty
        self._store = Remembered(open_store(storage, folder, write=False))
        self._records = RecordsReader(self._store)

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
        self._store.refresh()
        found = self._records.read()
        total = 0 if self._manifest is None else self._manifest.spec.training.total_steps
        return RunView(
            name=self._name,
            manifest=self._manifest,
            rules=self._rules,
            progress=self.progress(),
            branches=found.branches,
            suppressed=found.suppressed,
            lineage=found.lineage,
            complete=completion(self._store, total),
            damaged=found.damaged,
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
            name=self._name,
            manifest=self._manifest,
            rules=self._rules,
            progress=progress,
            branches=[],
            suppressed=[],
            lineage=[],
            complete=None,
            away=away,
        )


def look(folder: Path) -> RunView:
    """Read the whole view once; folder: a work directory, or a manifest whose storage section names
    where a run is stored. Raises FileNotFoundError where the folder holds no run, ManifestError.
    """
    return RunReader(folder).look()
