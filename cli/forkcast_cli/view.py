"""What a work directory shows of its run: progress, statistics, branches. Reads, never writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast.admission import Refusal
from forkcast.decision import Decision
from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import Trial, Trigger
from forkcast_wire.completion import completion
from forkcast_wire.documents import Complete, lineage_entries, load
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import load_manifest
from forkcast_wire.store import open_store, read_document


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchView:
    """One branch: its trigger, phase, decision (where there is one) and trials by candidate."""

    id: str
    trigger: Trigger
    phase: str
    outcome: str | None
    reason: str
    decision: Decision | None
    trials: dict[str, dict[int, Trial]]


@dataclass(frozen=True, slots=True)
class SuppressedView:
    """A trigger that opened no branch, and why."""

    trigger: Trigger
    reason: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One look at a run. complete: its end, None while it has not taken all steps wanted now."""

    manifest: TrainingRun
    progress: dict[str, Any]
    branches: list[BranchView]
    suppressed: list[SuppressedView]
    lineage: list[LineageEntry]
    complete: Complete | None

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


def manifest_of(folder: Path) -> TrainingRun:
    """The resolved manifest of a work directory, or the manifest in a file. Raises FileNotFoundError,
    ManifestError.
    """
    if folder.is_file():
        return load_manifest(folder)
    return TrainingRun.model_validate(json.loads((folder / "manifest.json").read_text()))


def look(folder: Path) -> RunView:
    """Read the whole view; folder: a work directory, or a manifest whose storage section names where a
    run is stored. Raises FileNotFoundError where the folder holds no run.
    """
    manifest = manifest_of(folder)
    store = open_store(manifest.spec.storage, folder)
    progress = folder / "progress.json"
    return RunView(
        manifest=manifest,
        progress=json.loads(progress.read_text()) if progress.exists() else {},
        branches=_branches(store),
        suppressed=[
            load(SuppressedView, store.get(info.key)[0]) for info in store.list("suppressed/")
        ],
        lineage=lineage_entries(store),
        complete=completion(store, manifest.spec.training.total_steps),
    )


def _branches(store: Store) -> list[BranchView]:
    names: dict[str, set[str]] = {}
    for info in store.list("branches/"):
        _, branch, name = info.key.split("/")
        names.setdefault(branch, set()).add(name)
    found = [_branch(store, branch, files) for branch, files in names.items()]
    return sorted(
        (one for one in found if one is not None), key=lambda b: (b.trigger.epoch, b.trigger.step)
    )


def _branch(store: Store, branch: str, files: set[str]) -> BranchView | None:
    if "branch.json" not in files:
        return None
    opened = json.loads(store.get(f"branches/{branch}/branch.json")[0])
    phase = "Forking"
    if "phase.json" in files:
        phase = json.loads(store.get(f"branches/{branch}/phase.json")[0])["kind"]
    ended = {}
    if "outcome.json" in files:
        ended = json.loads(store.get(f"branches/{branch}/outcome.json")[0])
    trials: dict[str, dict[int, Trial]] = {}
    for info in store.list(f"rollouts/{branch}/"):
        parts = info.key.split("/")
        if len(parts) == 4 and parts[3].startswith("trial-"):
            trial = read_document(store, Trial, info.key)
            if trial is not None:
                trials.setdefault(parts[2], {})[trial.rung] = trial
    return BranchView(
        id=branch,
        trigger=load(Trigger, json.dumps(opened["trigger"]).encode()),
        phase=phase,
        outcome=ended.get("outcome"),
        reason=ended.get("reason", ""),
        decision=read_document(store, Decision, f"branches/{branch}/decision.json"),
        trials=trials,
    )
