"""One Parquet index of runs and branches: what was tried, what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.decision import CONTROL
from forkcast.records import Trial
from forkcast.relapse import WATCHED_STEPS, Aftermath, aftermaths
from forkcast_cli.view import RunReader, RunView
from forkcast_wire.echo import one_line
from forkcast_wire.files import replaced
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.run_folder import MANIFEST, is_watched
from forkcast_wire.run_records import BranchView
from forkcast_wire.statistics import newest_steps
from forkcast_wire.store import StoreError

INDEX = "runs.parquet"
SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("folder", pa.string()),
        ("branch", pa.string()),
        ("epoch", pa.int64()),
        ("trigger_step", pa.int64()),
        ("rule", pa.string()),
        ("z", pa.float64()),
        ("candidate", pa.string()),
        ("action", pa.string()),
        ("learning_rate_scale", pa.float64()),
        ("weight_decay_scale", pa.float64()),
        ("clipping", pa.string()),
        ("momentum_reset", pa.bool_()),
        ("rewind_steps", pa.int64()),
        ("rung", pa.int64()),
        ("loss", pa.float64()),
        ("control_loss", pa.float64()),
        ("verdict", pa.string()),
        ("outcome", pa.string()),
        *((f"relapsed_within_{steps}", pa.bool_()) for steps in WATCHED_STEPS),
        ("decision_digest", pa.string()),
        ("run_complete", pa.bool_()),
        ("run_loss", pa.float64()),
        ("not_read", pa.string()),
    ]
)


def find_runs(root: Path) -> list[Path]:
    """The work directories at or below ``root``, at most two levels down, sorted.

    Raises ManifestError where ``root`` is not a folder.
    """
    if not root.is_dir():
        raise ManifestError(str(root), "is not a folder", "give a folder that holds runs")
    found = {
        path.parent for pattern in ("", "*/", "*/*/") for path in root.glob(f"{pattern}run.json")
    }
    return sorted(path for path in found if (path / MANIFEST).exists() or is_watched(path))


def rows_of(folder: Path, view: RunView) -> list[dict[str, Any]]:
    """One row a verified candidate; one with an empty branch for a run that opened none.

    relapsed_within_*: of a branch that was adopted, whether the run triggered again so soon; empty
    where it was not adopted, or not watched for so long.
    """
    base = {
        "run": view.name,
        "folder": str(folder),
        "run_complete": view.complete is not None,
        "run_loss": view.complete.validation_loss if view.complete else None,
    }
    triggers = [one.trigger for one in view.branches]
    triggers += [one.trigger for one in view.suppressed]
    after = aftermaths(view.lineage, triggers, newest_steps(folder / "statistics"))
    adopted = {
        (entry.epoch - 1, entry.trigger_step): what
        for entry, what in zip(view.lineage, after, strict=True)
    }
    rows = [
        base | row
        for branch in view.branches
        for row in _branch_rows(branch, adopted.get((branch.trigger.epoch, branch.trigger.step)))
    ]
    return rows or [base]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The run's rows, or one that says why it could not be read: its neighbours are indexed all the
    same.
    """
    try:
        view = RunReader(folder).look_past_damage()
    except (StoreError, ManifestError, ValueError, OSError) as error:
        return [{"run": folder.name, "folder": str(folder), "not_read": one_line(str(error))}]
    left_out = [
        {"run": folder.name, "folder": str(folder), "not_read": one} for one in view.damaged
    ]
    return rows_of(folder, view) + left_out


def _branch_rows(branch: BranchView, after: Aftermath | None) -> list[dict[str, Any]]:
    trigger, decision = branch.trigger, branch.decision
    base = {
        "branch": branch.id,
        "epoch": trigger.epoch,
        "trigger_step": trigger.step,
        "rule": trigger.rule.value,
        "z": trigger.z,
        "outcome": branch.outcome,
        "decision_digest": decision.digest if decision else None,
    }
    if after is not None:
        base |= {f"relapsed_within_{n}": after.relapsed_within(n) for n in WATCHED_STEPS}
    if decision is None:
        return [base]
    judged = {one.candidate: one.verdict.value for one in decision.judgements}
    rows = []
    for name, trials in sorted(branch.trials.items()):
        if name == CONTROL or not trials:
            continue
        action = decision.draft.candidate(name).action
        last = trials[max(trials)]
        control = branch.trials.get(CONTROL, {}).get(last.rung)
        rows.append(
            base
            | {
                "candidate": name,
                "action": action.describe(),
                "learning_rate_scale": action.learning_rate_scale,
                "weight_decay_scale": action.weight_decay_scale,
                "clipping": action.clipping,
                "momentum_reset": action.momentum_reset,
                "rewind_steps": action.rewind_steps,
                "rung": last.rung,
                "loss": _loss(last),
                "control_loss": _loss(control),
                "verdict": judged.get(name),
            }
        )
    return rows or [base]


def _loss(trial: Trial | None) -> float | None:
    if trial is None:
        return None
    return trial.mean_weights_loss if trial.mean_weights_loss is not None else trial.validation_loss


def write_index(root: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Write ``root``/runs.parquet from all runs below; returns it and its rows.

    Raises ManifestError where the folder cannot be used.
    """
    rows = [row for folder in find_runs(root) for row in _rows(folder)]
    path = root / INDEX
    try:
        with replaced(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
    except OSError as error:
        raise ManifestError(
            str(path), (error.strerror or "cannot be written").lower(), "make the folder writable"
        ) from None
    return path, rows
