"""What a work directory shows of its run: progress, statistics, branches. Reads, never writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkcast.admission import Refusal
from forkcast.decision import Decision
from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import Trial, Trigger
from forkcast_cli.workdir import read_manifest, read_progress
from forkcast_wire.completion import completion
from forkcast_wire.documents import Complete, DocumentError, lineage_entries, load, load_at
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import load_manifest
from forkcast_wire.store import (
    Remembered,
    StoreUnavailable,
    open_store,
    read_document,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """One branch: its trigger, phase, decision (if there is one) and trials by candidate.

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


@dataclass(frozen=True, slots=True)
class SuppressedView:
    """A trigger that opened no branch, and why."""

    trigger: Trigger
    reason: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One look at a run.

    complete: its end, None while it has not taken all steps wanted now. away: why the store does
    not answer; then branches, suppressed, lineage and complete are empty, not known to be so.
    """

    manifest: TrainingRun
    progress: dict[str, Any]
    branches: list[BranchView]
    suppressed: list[SuppressedView]
    lineage: list[LineageEntry]
    complete: Complete | None
    away: str = ""

    @property
    def active(self) -> int:
        """Branches that have not ended."""
        return sum(1 for one in self.branches if one.outcome is None)

    @property
    def refused(self) -> list[SuppressedView]:
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
        self._store: Store = Remembered(
            open_store(self._manifest.spec.storage, folder, write=False)
        )
        self._ended: dict[str, BranchView] = {}

    def progress(self) -> dict[str, Any]:
        """What the trainer last said; empty before its first word."""
        return read_progress(self._folder)

    def look(self) -> RunView:
        """Read the whole view. Raises StoreUnavailable."""
        store, total = self._store, self._manifest.spec.training.total_steps
        lineage = lineage_entries(store)
        return RunView(
            manifest=self._manifest,
            progress=self.progress(),
            branches=self._branches(lineage),
            suppressed=[
                load_at(store, SuppressedView, info.key) for info in store.list("suppressed/")
            ],
            lineage=lineage,
            complete=completion(store, total),
        )

    def look_if_there(self) -> RunView:
        """The view, or what the folder alone shows while the store is away."""
        try:
            return self.look()  # ends with the first operation that the store does not answer
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

    def _branches(self, lineage: Iterable[LineageEntry]) -> list[BranchView]:
        names: dict[str, set[str]] = {}
        for info in self._store.list("branches/"):
            _, branch, name = info.key.split("/")
            names.setdefault(branch, set()).add(name)
        adopted = {(one.epoch - 1, one.trigger_step): one.decision_digest for one in lineage}
        found = []
        for branch, files in names.items():
            view = self._ended.get(branch) or _branch(self._store, branch, files, adopted)
            if view is not None:
                found.append(view)
                if view.outcome is not None and view.phase == "Finished":
                    self._ended[branch] = view
        return sorted(found, key=lambda b: (b.trigger.epoch, b.trigger.step))


def look(folder: Path) -> RunView:
    """Read the whole view once; folder: a work directory, or a manifest whose storage section names
    where a run is stored. Raises FileNotFoundError where the folder holds no run, ManifestError.
    """
    return RunReader(folder).look()


def _branch(
    store: Store, branch: str, files: set[str], adopted: Mapping[tuple[int, int], str]
) -> BranchView | None:
    if "branch.json" not in files:
        return None
    key = f"branches/{branch}/branch.json"
    try:
        trigger = load(Trigger, json.dumps(_object(store, key)["trigger"]).encode())
    except (KeyError, DocumentError) as error:
        raise DocumentError(f"{key}: is damaged ({error}); restore it from a copy") from None
    phase, ended = "Forking", dict[str, Any]()
    if "phase.json" in files:
        saved = _object(store, f"branches/{branch}/phase.json")
        phase = str(saved.get("kind", "Unknown"))
        if phase == "Finished":
            ended = dict(saved.get("phase", {}))
    if "outcome.json" in files:
        ended = _object(store, f"branches/{branch}/outcome.json") or ended
    trials: dict[str, dict[int, Trial]] = {}
    for info in store.list(f"rollouts/{branch}/"):
        parts = info.key.split("/")
        if len(parts) == 4 and parts[3].startswith("trial-"):
            trial = read_document(store, Trial, info.key)
            if trial is not None:
                trials.setdefault(parts[2], {})[trial.rung] = trial
    decision = read_document(store, Decision, f"branches/{branch}/decision.json")
    recorded = {adopted.get((trigger.epoch, trigger.step)), ended.get("decision_digest")} - {None}
    return BranchView(
        id=branch,
        trigger=trigger,
        phase=phase,
        outcome=ended.get("outcome"),
        reason=ended.get("reason", ""),
        decision=decision,
        trials=trials,
        edited=decision is not None and not recorded <= {decision.digest},
    )


def _object(store: Store, key: str) -> dict[str, Any]:
    """The JSON object under a key; {} if it is damaged."""
    try:
        found = json.loads(store.get(key)[0])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
