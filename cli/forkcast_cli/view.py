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
from forkcast_cli.workdir import read_manifest, read_progress
from forkcast_wire.completion import completion
from forkcast_wire.documents import Complete, DocumentError, lineage_entries, load, load_at
from forkcast_wire.manifest import TrainingRun
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


def look(folder: Path) -> RunView:
    """Read the whole view. Raises FileNotFoundError where the folder holds no run."""
    manifest = read_manifest(folder)
    store = open_store(manifest.spec.storage, folder)
    return RunView(
        manifest=manifest,
        progress=read_progress(folder),
        branches=_branches(store),
        suppressed=[load_at(store, SuppressedView, info.key) for info in store.list("suppressed/")],
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
    return BranchView(
        id=branch,
        trigger=trigger,
        phase=phase,
        outcome=ended.get("outcome"),
        reason=ended.get("reason", ""),
        decision=read_document(store, Decision, f"branches/{branch}/decision.json"),
        trials=trials,
    )


def _object(store: Store, key: str) -> dict[str, Any]:
    """The JSON object under a key; {} if it is damaged."""
    try:
        found = json.loads(store.get(key)[0])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
