"""TrainingRun and Branch objects of a cluster, in tables and in words. What a newer operator or
definition has added to them is left out. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from forkcast.allowance import Allowance
from forkcast.records import Trigger
from forkcast_cli import words
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.newer import known_part
from forkcast_wire.resources import (
    BranchSpec,
    BranchStatus,
    Condition,
    RolloutStatus,
    TrainingRunStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunObject:
    """A TrainingRun."""

    name: str
    namespace: str
    spec: TrainingRunSpec
    status: TrainingRunStatus

    @classmethod
    def of(cls, body: dict[str, Any]) -> RunObject:
        """From the API server's JSON. Raises pydantic.ValidationError."""
        meta = body["metadata"]
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            spec=known_part(TrainingRunSpec, body["spec"])[0],
            status=known_part(TrainingRunStatus, body.get("status", {}))[0],
        )

    @property
    def state(self) -> str:
        """What it does, as its operator says."""
        found = _condition(self.status.conditions, "Ready")
        return found.reason if found else "not seen by an operator yet"

    def document(self, branches: Sequence[BranchObject]) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": self.name,
            "namespace": self.namespace,
            "status": self.status.document(),
            "branches": [one.document() for one in branches],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchObject:
    """A Branch."""

    name: str
    spec: BranchSpec
    status: BranchStatus

    @classmethod
    def of(cls, body: dict[str, Any]) -> BranchObject:
        """From the API server's JSON. Raises pydantic.ValidationError."""
        return cls(
            name=body["metadata"]["name"],
            spec=known_part(BranchSpec, body["spec"])[0],
            status=known_part(BranchStatus, body.get("status", {}))[0],
        )

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        spec = self.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"name": self.name, "spec": spec, "status": self.status.document()}

    @property
    def state(self) -> str:
        """The phase, or how it ended."""
        found = _condition(self.status.conditions, "Ready")
        return found.reason if found else "Pending"

    @property
    def trigger(self) -> Trigger:
        """The trigger as a record of the core."""
        given = self.spec.trigger
        return Trigger(
            run_uid=self.spec.run_ref.uid,
            epoch=given.epoch,
            step=given.step,
            onset_step=given.onset_step,
            rule=given.rule,
            z=given.z,
            index=given.index,
            components=given.components,
            thresholds=given.thresholds,
            cause=given.cause,
            severe=given.severe,
        )

    @property
    def allowance(self) -> Allowance | None:
        """What it may cost; None if it was not limited."""
        given, candidates = self.spec.allowance, self.spec.top_k
        if given is None:
            return None
        return Allowance(candidates=candidates, most=given.most, grounds=given.grounds)


def _condition(conditions: Sequence[Condition], kind: str) -> Condition | None:
    return next((one for one in conditions if one.type == kind), None)


def run_lines(run: RunObject) -> list[Text]:
    """The state of a run, line by line."""
    status = run.status
    ready = _condition(status.conditions, "Ready")
    head = Text.assemble((run.name, "bold"), f"  {run.state}")
    if ready is not None and ready.message:
        head.append(f": {ready.message}", style="yellow" if ready.status != "True" else "")
    lines = [head]
    if (progress := status.progress) is not None:
        line = f"step {progress.step} of {progress.total_steps} ({progress.percentage} %)"
        line += f", epoch {status.lineage.epoch}, {progress.tokens:,} tokens"
        if progress.estimated_remaining_seconds:
            line += f", about {_duration(progress.estimated_remaining_seconds)} left"
        lines.append(Text(line))
    figures = [f"{one.name.replace('_', ' ')} {one.value:g}" for one in status.metrics]
    if status.uncertainty is not None:
        figures.append(f"z {status.uncertainty.z:.2f}")
    if figures:
        lines.append(Text(", ".join(figures)))
    if status.uncertainty is not None and status.uncertainty.last_event_step is not None:
        told = status.uncertainty
        count = f"{told.events} departure{'s' * (told.events != 1)}, the last"
        lines.append(Text(f"{count} at step {told.last_event_step:,}: {told.last_event}", "yellow"))
    if (latest := status.checkpoints.latest) is not None:
        text = f"checkpoint of step {latest.step} in epoch {latest.epoch}"
        lines.append(Text(f"{text}, {status.checkpoints.count} kept"))
    if (trainer := status.trainer) is not None:
        text = f"{trainer.kind} {trainer.name}: {trainer.ready_pods} of {trainer.pods} pods ready"
        lines.append(Text(f"{text}, {trainer.restarts} restarts"))
    if status.branches.suppressed:
        count = f"triggers without a branch: {status.branches.suppressed}"
        last = status.branches.last_suppressed  # none in a status of an earlier operator
        lines.append(Text(f"{count}, the last: {last}" if last else count, style="dim"))
    if (failure := status.last_failure) is not None:
        lines.append(Text(f"last failure {failure.reason}: {failure.message}", style="dim"))
    return lines


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{max(1, rest // 60)} min"


def branch_table(branches: Sequence[BranchObject]) -> Table:
    """One branch a row."""
    table = Table("branch", "trigger", "state", "rollouts", "winner", "action", box=None)
    for one in branches:
        decision, trigger = one.status.decision, one.spec.trigger
        measured = sum(rollout.rung > 0 for rollout in one.status.rollouts)
        table.add_row(
            one.name,
            f"{trigger.rule.value} z={trigger.z:.1f}",
            one.state,
            f"{measured}/{len(one.status.rollouts)}",
            (decision.winner or "") if decision else "",
            decision.action if decision else "",
        )
    return table


_HEADER = ("", "action", "rung", "loss", "gain", "volatility", "state", "verdict")


def sentences(branch: BranchObject) -> list[str]:
    """What happened, in order."""
    status = branch.status
    said = [words.trigger_sentence(branch.trigger)]
    if branch.allowance is not None:
        said.append(words.allowance_sentence(branch.allowance))
    if (draft := status.draft) is not None:
        who = f"{draft.count} candidates were drafted, ranked by the {draft.source.value.lower()}"
        said.append(f"{who}{f' ({draft.note})' if draft.note else ''}.")
    if (decision := status.decision) is not None:
        what = f"{decision.winner}, {decision.action}" if decision.winner else "nothing"
        said.append(f"Adopted: {what} ({words.spelt(decision.outcome.value)}: {decision.reason}).")
    if status.cost.rollout_steps:
        said.append(f"It cost {status.cost.rollout_steps} rollout steps.")
    return said


def rows(branch: BranchObject) -> list[list[str]]:
    """The rollouts, one a row, under `_HEADER`."""
    return [_row(one) for one in branch.status.rollouts]


def _row(one: RolloutStatus) -> list[str]:
    return [
        one.name,
        one.action,
        f"+{one.rung}" if one.rung else "",
        _figure(one.validation_loss),
        _figure(one.improvement, "+.4f"),
        _figure(one.volatility_ratio, ".2f"),
        one.state.value,
        one.verdict.value if one.verdict else "",
    ]


def _figure(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def explanation(branch: BranchObject) -> Group:
    """Why a branch ended as it did."""
    parts: list[Text | Padding | Table] = [
        Text.assemble((branch.name, "bold"), "  ", (words.spelt(branch.state), "green"))
    ]
    parts += [Padding(Text(one), (0, 0, 0, 2), expand=False) for one in sentences(branch)]
    if branch.status.rollouts:
        table = Table(*_HEADER, box=None, pad_edge=False)
        winner = branch.status.decision.winner if branch.status.decision else None
        for row in rows(branch):
            table.add_row(*row, style="bold green" if row[0] == winner else "")
        parts += [Text(), table]
    return Group(*parts)


def page(run: RunObject, branches: Sequence[BranchObject], unread: str) -> str:
    """One self-contained HTML page, of the objects alone. unread: why there is no history on it."""
    loader = PackageLoader("forkcast_cli", ".")
    environment = Environment(loader=loader, autoescape=True)
    return environment.get_template("cluster_report.html.j2").render(
        run=run,
        unread=unread,
        lines=[line.plain for line in run_lines(run)],
        conditions=run.status.conditions,
        header=_HEADER,
        branches=[
            {
                "name": one.name,
                "state": words.spelt(one.state),
                "winner": one.status.decision.winner if one.status.decision else None,
                "sentences": sentences(one),
                "rows": rows(one),
            }
            for one in branches
        ],
    )
