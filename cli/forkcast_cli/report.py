"""The report: one self-contained HTML page of a run, from what its work directory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from forkcast.adoption import adopted_trial, losses_by_step
from forkcast.decision import CONTROL, Outcome
from forkcast_cli import words
from forkcast_cli.charts import Chart, Line, Mark, smooth, svg, top_edge
from forkcast_cli.facts import RunFacts, gather
from forkcast_cli.figures import figures, headline_tiles
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.resources import Condition
from forkcast_wire.run_records import BranchView
from forkcast_wire.statistics import COMPONENT, components

_SERIES = ("s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8")
_SMOOTHED = 10


@dataclass(frozen=True, slots=True)
class BranchSection:
    """What the page shows of one branch."""

    id: str
    badge: str
    outcome: str
    sentences: list[str]
    charts: list[Markup]
    header: list[str]
    rows: list[tuple[str, list[str]]]


def write_report(folder: Path, path: Path) -> Path:
    """Write the page. Raises FileNotFoundError where the folder holds no run."""
    page = render(gather(folder))
    replace_bytes(path, page.encode())
    return path


def render(facts: RunFacts, state: Sequence[str] = (), conditions: Sequence[Condition] = ()) -> str:
    """The page as HTML. state, conditions: of a run in a cluster, what its object says."""
    environment = Environment(
        loader=PackageLoader("forkcast_cli", "."), autoescape=True, trim_blocks=True
    )
    view = facts.view
    return environment.get_template("report.html.j2").render(
        name=view.name,
        state=state,
        conditions=conditions,
        damaged=view.damaged,
        summary=summary(facts),
        tiles=headline_tiles(facts.metrics, view),
        charts=[Markup(svg(chart)) for chart in run_charts(facts)],  # noqa: S704  escaped in svg()
        branches=[_section(one) for one in view.branches],
        events=[words.event_row(one) for one in facts.events],
        suppressed=[(one.trigger.step, one.reason.words) for one in view.refused],
        figures=figures(facts.metrics),
        manifest=_settings(view.manifest),
        version=version("forkcast"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        device=view.progress.get("device", "?"),
        rate=view.progress.get("tokens_per_second"),
    )


def _settings(manifest: TrainingRun | None) -> str:
    """The manifest as YAML; nothing for a watched run, whose training is set up elsewhere."""
    return "" if manifest is None else yaml.safe_dump(manifest.document(), sort_keys=False)


def summary(facts: RunFacts) -> str:
    """The run in two sentences."""
    view, done = facts.view, facts.view.complete
    progress = view.progress
    where = (
        f"Complete: {done.step} steps, validation loss {done.validation_loss:.4f} nats/token."
        if done is not None
        else f"At step {progress.get('step', 0)}{view.of_total} ({progress.get('state', 'not started')})."
    )
    accepted = [
        one.decision.action.describe()
        for one in view.branches
        if one.decision and one.decision.outcome is Outcome.ACCEPTED and one.decision.action
    ]
    if view.manifest is None:
        events = "One event." if len(facts.events) == 1 else f"{len(facts.events) or 'No'} events."
        return f"{where} The run is watched only. {events}"
    if not view.branches:
        return f"{where} No branch was opened."
    count = "One branch was" if len(view.branches) == 1 else f"{len(view.branches)} branches were"
    end = f"adopted: {'; '.join(accepted)}." if accepted else "nothing was changed."
    return f"{where} {count} opened; {end}"


# ----------------------------------------------------------------------------------- the whole run


def run_charts(facts: RunFacts) -> list[Chart]:
    """Loss, index, and the index's parts, over the steps of the lineage."""
    view = facts.view
    last = max([0, view.complete.step if view.complete else 0, *(p.step for p in facts.points)])
    marks = _marks(facts)
    return [
        _loss_chart(facts, last, marks),
        *(
            []
            if all(row["z"] is None for row in facts.rows)
            else [_index_chart(facts, last), _parts_chart(facts, last)]
        ),
    ]


def _marks(facts: RunFacts) -> list[Mark]:
    marks = [
        Mark(x=branch.trigger.step, label=branch.id, style="mark trigger")
        for branch in facts.view.branches
    ]
    marks += [Mark(x=one.step, label="event", style="mark trigger") for one in facts.events]
    return marks + [
        Mark(x=entry.state.step, label=f"epoch {entry.epoch} adopted", style="mark adopted")
        for entry in facts.view.lineage
    ]


def _loss_chart(facts: RunFacts, last: int, marks: Sequence[Mark]) -> Chart:
    lines: list[Line] = []
    cut = {entry.epoch - 1: entry.base_step for entry in facts.view.lineage}
    for epoch in sorted({point.epoch for point in facts.points}):
        mine = [(p.step, p.loss) for p in facts.points if p.epoch == epoch]
        limit = cut.get(epoch, math.inf)
        lines.append(
            Line(
                points=[p for p in mine if p[0] < limit], style="main", label="main run", width=1.3
            )
        )
        if dropped := [p for p in mine if p[0] >= limit]:
            lines.append(Line(points=dropped, style="dropped", label="abandoned", width=1.3))
    decisions = [one.decision for one in facts.view.branches if one.decision is not None]
    adopted = [adopted_trial(decisions, entry) for entry in facts.view.lineage]
    lines += [
        Line(points=losses_by_step(trial), style="adopted", label="adopted rollout", width=1.3)
        for trial in adopted
        if trial is not None
    ]
    validations = [
        (row["step"], row["validation_loss"]) for row in facts.rows if row["validation_loss"]
    ]
    if validations:
        lines.append(Line(points=validations, style="validation", label="validation", dots=True))
    high = [y for line in lines for _, y in line.points if math.isfinite(y)]
    return Chart(
        title="Loss",
        y_label="nats/token",
        lines=lines,
        marks=marks,
        height=320,
        x_from=0,
        x_to=last,
        y_to=top_edge(high),
        described="training and validation loss by step, with triggers and adoptions",
    )


def _index_chart(facts: RunFacts, last: int) -> Chart:
    rules = facts.view.branches[0].trigger.thresholds if facts.view.branches else {}
    levels = [(rules["single_z"], "trigger")] if "single_z" in rules else []
    highest = max((row["z"] for row in facts.rows if row["z"] is not None), default=12.0)
    return Chart(
        title="Uncertainty Index",
        y_label="z",
        lines=[Line(points=part, style="main", width=1.3) for part in _by_epoch(facts, "z")],
        levels=levels,
        marks=[Mark(x=m.x, label="", style=m.style) for m in _marks(facts)],
        height=190,
        x_from=0,
        x_to=last,
        y_from=-4,
        y_to=max(12.0, min(25.0, highest)),
        described="z of the Uncertainty Index by step with its thresholds",
    )


def _by_epoch(facts: RunFacts, column: str) -> list[list[tuple[float, float]]]:
    epochs = sorted({row["epoch"] for row in facts.rows})
    return [
        [
            (row["step"], row[column])
            for row in facts.rows
            if row["epoch"] == epoch and row.get(column) is not None
        ]
        for epoch in epochs
    ]


def _parts_chart(facts: RunFacts, last: int) -> Chart:
    lines = []
    for n, name in enumerate(components(facts.rows)):
        lines += [
            Line(points=part, style=_SERIES[n % len(_SERIES)], label=name, width=1.2)
            for part in _by_epoch(facts, COMPONENT + name)
            if part
        ]
    return Chart(
        title="Parts of the index",
        y_label="robust z",
        lines=lines,
        marks=[Mark(x=m.x, label="", style=m.style) for m in _marks(facts)],
        height=190,
        x_from=0,
        x_to=last,
        y_from=-5,
        y_to=12,
        described="robust z of each signal by step",
    )


# ------------------------------------------------------------------------------------ each branch


def _section(branch: BranchView) -> BranchSection:
    decision = branch.decision
    outcome = branch.outcome or (decision.outcome.value if decision else branch.phase)
    header, rows = words.table(branch)
    good = decision is not None and decision.outcome.adopts
    winner = decision.winner if decision is not None else None
    styles = {CONTROL: "control", winner: "winner"}
    return BranchSection(
        id=branch.id,
        badge="good" if good else "plain" if branch.outcome else "open",
        outcome=words.spelt(outcome),
        sentences=words.sentences(branch),
        charts=[Markup(svg(chart)) for chart in branch_charts(branch)],  # noqa: S704  as above
        header=header,
        rows=[(styles.get(row[0], ""), row) for row in rows],
    )


def branch_charts(branch: BranchView) -> list[Chart]:
    """The rollouts' losses, and what each gained on the control on the same data."""
    last = {name: by[max(by)] for name, by in branch.trials.items() if by}
    control = last.pop(CONTROL, None)
    if control is None or not last:
        return []
    names = branch.decision.draft.finalists if branch.decision else tuple(sorted(last))
    order = [name for name in names if name in last]
    winner = branch.decision.winner if branch.decision else None
    rungs = sorted({rung for by in branch.trials.values() for rung in by})
    t = branch.trigger.step
    marks = [Mark(x=t, label="trigger", style="mark trigger")]
    marks += [Mark(x=t + rung, label=f"+{rung}", style="mark") for rung in rungs]
    base = dict(losses_by_step(control))
    styles = {name: _SERIES[i % len(_SERIES)] for i, name in enumerate(order)}
    curves, gains = [], []
    for name in order:
        losses = losses_by_step(last[name])
        width = 2.6 if name == winner else 1.3
        drawn = smooth(losses, _SMOOTHED)
        curves.append(Line(points=drawn, style=styles[name], label=name, width=width))
        gain = [(x, base[x] - y) for x, y in losses if x in base]
        gains.append(
            Line(points=smooth(gain, _SMOOTHED), style=styles[name], label=name, width=width)
        )
    curves.append(
        Line(
            points=smooth(losses_by_step(control), _SMOOTHED),
            style="main",
            label=CONTROL,
            width=2.0,
        )
    )
    return [
        Chart(
            title=f"Rollouts: training loss, mean of {_SMOOTHED} steps",
            y_label="nats/token",
            lines=curves,
            marks=marks,
            height=260,
            y_to=top_edge([y for line in curves for _, y in line.points]),
            described=f"training losses of the rollouts of {branch.id}",
        ),
        Chart(
            title="Gain on the control, same data (above 0 is better)",
            y_label="nats/token",
            lines=gains,
            levels=[(0.0, "")],
            marks=[Mark(x=m.x, label="", style=m.style) for m in marks],
            height=220,
            x_from=min(x for line in curves for x, _ in line.points),
            described=f"control's loss minus each rollout's, {branch.id}",
        ),
    ]


def report_document(facts: RunFacts) -> dict[str, Any]:
    """The same as JSON-ready values, for scripts."""
    from dataclasses import asdict

    return {
        "run": facts.view.name,
        "summary": summary(facts),
        "metrics": asdict(facts.metrics),
        "branches": [
            {"id": one.id, "outcome": one.outcome, "why": words.sentences(one)}
            for one in facts.view.branches
        ],
    }
