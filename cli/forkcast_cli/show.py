"""`status`, `branches`, `explain`: a run's state in tables and in words."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from forkcast.canonical import plain
from forkcast.decision import CONTROL
from forkcast_cli import words
from forkcast_cli.run import branch_table, pace, panel, troubles
from forkcast_cli.store_watch import Seen, pause
from forkcast_cli.view import RunReader, RunView
from forkcast_cli.workdir import LAST_END, full, in_use
from forkcast_wire.documents import Complete
from forkcast_wire.run_folder import damaged_as_none
from forkcast_wire.run_records import BranchView

_WATCH_SECONDS = 1.0
_STALE_SECONDS = 15.0
_AT_WORK = ("running", "held", "ending")


def state_word(folder: Path, view: RunView) -> str:
    """complete, or what the trainer last said, or `not running` if it finished fewer steps than are
    wanted now, or has long said nothing and no `forkcast run` is at work here: a run that waits for
    its store at the end says nothing, either.
    """
    if view.complete is not None:
        return "complete"
    said = str(view.progress.get("state", "not started"))
    if said == "finished":
        return "not running" if view.manifest is not None else said
    try:
        age = time.time() - (folder / "progress.json").stat().st_mtime
    except OSError:
        return said
    if said not in _AT_WORK or age <= _STALE_SECONDS or in_use(folder):
        return said
    return "not running"


def last_end(folder: Path) -> str | None:
    """Why the trainer ended the last time it said so: reason and text; None if it has not."""
    found = damaged_as_none(folder / LAST_END)
    if not isinstance(found, dict):
        return None
    return f"{found.get('reason')}: {found.get('text')}"


def status_document(folder: Path, view: RunView) -> dict[str, Any]:
    """The state of a run, JSON-ready."""
    done: Complete | None = view.complete
    return {
        "run": view.name,
        "state": state_word(folder, view),
        "progress": view.progress,
        "storeAway": view.away or None,
        "damaged": list(view.damaged),
        "trainerEnded": last_end(folder),
        "epoch": view.lineage[-1].epoch if view.lineage else 0,
        "openBranches": view.active,
        "branches": [branch_document(one) for one in view.branches],
        "suppressed": len(view.refused),
        "suppressedBy": dict(Counter(one.reason.value for one in view.refused)),
        "complete": plain(done) if done is not None else None,
    }


def branch_document(branch: BranchView) -> dict[str, Any]:
    """One branch, JSON-ready."""
    decision = branch.decision
    return {
        "id": branch.id,
        "step": branch.trigger.step,
        "epoch": branch.trigger.epoch,
        "rule": branch.trigger.rule.value,
        "z": branch.trigger.z,
        "severe": branch.trigger.severe,
        "allowance": plain(branch.allowance),
        "phase": branch.phase,
        "outcome": branch.outcome,
        "reason": branch.reason,
        "decisionEdited": branch.edited,
        "winner": decision.winner if decision else None,
        "action": decision.action.describe() if decision and decision.action else None,
        "rolloutSteps": decision.cost.rollout_steps if decision else None,
    }


def watch(folder: Path, console: Console) -> None:
    """The live view until the run has ended, or nobody is at work on it any more, or Ctrl-C. Raises
    FileNotFoundError.
    """
    losses: list[float] = []
    reader = RunReader(folder)
    view = reader.look_if_there()
    try:
        with Live(panel(view, losses), console=console, auto_refresh=False) as live:
            while _goes_on(folder, view):
                wait = pause(view.storage, Seen(view), int(bool(view.away)))
                time.sleep(max(wait, _WATCH_SECONDS))
                view = reader.look_if_there()
                if (loss := view.progress.get("loss")) is not None:
                    losses.append(loss)
                live.update(panel(view, losses), refresh=True)
    except KeyboardInterrupt:
        return
    if view.complete is None:
        words = "nobody is at work on this run; `forkcast run` in its folder goes on with it"
        console.print(f"{state_word(folder, view)}: {words}")


def _goes_on(folder: Path, view: RunView) -> bool:
    """Whether there may be more to see. Of a manifest in a file only the store tells."""
    if view.complete is not None:
        return False
    return folder.is_file() or in_use(folder) or state_word(folder, view) in _AT_WORK


def status(folder: Path, view: RunView) -> Group:
    """The state of a run for people."""
    progress, state = view.progress, state_word(folder, view)
    head = Text.assemble(
        (view.name, "bold"),
        f"  {state}  step {progress.get('step', 0)}{view.of_total}, epoch {progress.get('epoch', 0)}, "
        f"attempt {progress.get('attempt', 0)}",
    )
    parts: list[Text | Table] = [head]
    if progress.get("loss") is not None:
        parts.append(
            Text(
                f"loss {progress['loss']:.4f} nats/token, validation "
                f"{_number(progress.get('validation_loss'))}, "
                f"{pace(progress)} on {progress.get('device', '?')}"
            )
        )
    wrong = [*troubles(view, running=state in _AT_WORK), full(folder)]
    if (ended := last_end(folder)) is not None and view.complete is None:
        wrong.append(f"the trainer ended last: {ended}")
    parts += [Text(trouble, style="yellow") for trouble in wrong if trouble]
    if view.branches:
        parts.append(branch_table(view))
    if view.manifest is None:
        parts += [Text(line, style="yellow") for line in words.told_events(progress)]
    elif view.refused:
        parts.append(Text(words.refused_sentence(view.refused), style="dim"))
    return Group(*parts)


def _number(value: float | None) -> str:
    return "none since the last start" if value is None else f"{value:.4f}"


def explain(branch: BranchView) -> Group:
    """Why a branch ended as it did."""
    outcome = branch.outcome or branch.phase
    style = "green" if branch.decision and branch.decision.outcome.adopts else "yellow"
    parts: list[Text | Table | Padding] = [
        Text.assemble((branch.id, "bold"), "  ", (words.spelt(outcome), style))
    ]
    parts += [
        Padding(Text(sentence), (0, 0, 0, 2), expand=False) for sentence in words.sentences(branch)
    ]
    header, rows = words.table(branch)
    if rows and branch.trials:
        winner = branch.decision.winner if branch.decision else None
        parts += [Text(), *_finalists(header, rows, winner)]
        parts.append(
            Text(
                "+N: validation loss with the mean of recent weights, N steps after the trigger, "
                "nats/token. gain: the control's minus the candidate's.",
                style="dim",
            )
        )
    return Group(*parts)


def _finalists(header: list[str], rows: list[list[str]], winner: str | None) -> list[Table | Text]:
    """Who was tried and what became of it, then the figures: two tables, so that both fit."""
    tried = Table("", "action", "verdict", box=None, pad_edge=False)
    figures = Table(box=None, pad_edge=False)
    for name in ("", *header[2:-1]):
        figures.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        chosen = "bold green" if row[0] == winner else "dim" if row[0] == CONTROL else ""
        tried.add_row(row[0], row[1], row[-1], style=chosen)
        figures.add_row(row[0], *row[2:-1], style=chosen)
    return [tried, Text(), figures]


def find_branch(view: RunView, wanted: str) -> BranchView | None:
    """The branch of that id, of ``<run>-<id>``, or the last one for ``last``."""
    if wanted == "last" and view.branches:
        return view.branches[-1]
    name = wanted.removeprefix(f"{view.name}-")
    return next((one for one in view.branches if one.id == name), None)
