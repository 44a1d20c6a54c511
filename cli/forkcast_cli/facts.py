"""From a work directory to the values that metrics and reports are computed from. Reads only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast_cli import metrics
from forkcast_cli.shapes import ModelPlan, plan_model, tokens_per_step
from forkcast_cli.view import RunReader, RunView
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.run_events import RunEvent, events_of
from forkcast_wire.run_records import RunRecords
from forkcast_wire.run_steps import read_steps
from forkcast_wire.store import open_store


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run's view, its statistics rows of rank 0 in (epoch, step) order, and its metrics. events: its
    departures, whatever came of them.
    """

    view: RunView
    rows: list[dict[str, Any]]
    points: list[metrics.Point]
    metrics: metrics.Metrics
    events: list[RunEvent]


def gather(folder: Path) -> RunFacts:
    """Everything about a run. Raises FileNotFoundError if the folder holds none."""
    view = RunReader(folder).look_past_damage()
    store = open_store(view.storage, folder, write=False)
    # the steps that an adopted rollout took are its decision's here, see `forkcast.adoption`
    rows = read_steps(folder / "statistics", store, view.lineage).own
    points = [
        metrics.Point(row["epoch"], row["step"], _number(row["loss"]), _number(row["grad_norm"]))
        for row in rows
    ]
    spec = view.manifest.spec if view.manifest is not None else None
    model = _model(spec) if spec is not None else None
    facts = metrics.Facts(
        points=points,
        lineage=view.lineage,
        decisions=[one.decision for one in view.branches if one.decision is not None],
        triggers=[one.trigger for one in view.branches] + [one.trigger for one in view.refused],
        opened=len(view.branches),
        validation_loss=_last_validation(view, rows),
        parameters=model.parameters if model is not None else view.progress.get("parameters"),
        tokens_per_step=tokens_per_step(spec) if spec is not None else None,
    )
    records = RunRecords(
        branches=view.branches, suppressed=view.suppressed, lineage=view.lineage, damaged=()
    )
    return RunFacts(view, rows, points, metrics.compute(facts), events_of(records, rows))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _model(spec: TrainingRunSpec) -> ModelPlan | None:
    """None too of a model that this version does not build: another one has."""
    try:
        return plan_model(spec)
    except ManifestError:
        return None


def _last_validation(view: RunView, rows: Iterable[dict[str, Any]]) -> float | None:
    """The full evaluation of the end, or the newest validation taken."""
    if view.complete is not None:
        return view.complete.validation_loss
    taken = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
    return taken[-1] if taken else view.progress.get("validation_loss")
