"""`forkcast run`: the whole loop on this machine."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from forkcast_cli import rate, workdir
from forkcast_cli.supervisor import Supervisor
from forkcast_cli.terminal import console, print_notice
from forkcast_cli.view import RunView, look
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import ManifestError, refuse_cluster_only
from forkcast_wire.process import configure_logging
from forkcast_wire.store import StoreError, open_store
from forkcast_wire.termination import stop_event_on_sigterm

_LOOK_SECONDS = 0.2
_SHOW_SECONDS = 1.0
_MORE = "spec.training.totalSteps to train on"
_BLOCKS = " ▁▂▃▄▅▆▇█"


def run(manifest: TrainingRun, folder: Path, *, quiet: bool) -> bool:
    """Run to the end; True where the run is complete, False where it was interrupted.

    Raises ManifestError, RunFailedError.
    """
    refuse_cluster_only(manifest.spec)
    with workdir.locked(folder):
        prepared = workdir.prepare(folder, manifest)
        manifest = prepared.manifest
        try:
            open_store(manifest.spec.storage, folder)
        except StoreError as error:
            raise ManifestError(
                "spec.storage", str(error), "make it writable, or change it"
            ) from None
        for notice in prepared.notices:
            print_notice(notice)
        stop = stop_event_on_sigterm()
        with (folder / "logs" / "supervisor.log").open("a") as log:
            streams, sys.stderr = (sys.stdout, sys.stderr), log
            try:
                configure_logging("supervisor")
                return _supervised(prepared, folder, stop, quiet=quiet)
            finally:
                sys.stdout, sys.stderr = streams


def _supervised(
    prepared: workdir.Prepared, folder: Path, stop: threading.Event, *, quiet: bool
) -> bool:
    supervisor = Supervisor(prepared.manifest.spec, folder)
    screen = console(quiet=quiet)
    view = look(folder)
    if view.complete is not None:  # nothing is left to train; a branch may still have to end
        total = prepared.manifest.spec.training.total_steps
        if view.active == 0:
            screen.print(f"complete since step {view.complete.step} of {total}; raise {_MORE}")
            return True
        supervisor.children["trainer"].done = True
    elif said := _about_the_rate(prepared, view.progress.get("step", 0)):
        screen.print(f"learning rate: {said}", soft_wrap=True)
    losses: list[float] = []
    last_shown, told = 0.0, ""
    try:
        with Live(console=screen, refresh_per_second=2, transient=False) as live:
            while not stop.is_set():
                supervisor.look()
                if supervisor.trouble not in ("", told):
                    told = supervisor.trouble
                    screen.print(f"{told}; training goes on, it is tried again", soft_wrap=True)
                view = look(folder)
                if supervisor.finished(view.active):
                    live.update(panel(view, losses))
                    return True
                if screen.is_terminal and time.monotonic() - last_shown > _SHOW_SECONDS:
                    last_shown = time.monotonic()
                    loss = view.progress.get("loss")
                    if loss is not None:
                        losses.append(loss)
                    live.update(panel(view, losses))
                stop.wait(_LOOK_SECONDS)
        return False
    finally:
        supervisor.stop()


def _about_the_rate(prepared: workdir.Prepared, step: int) -> str:
    """What this start changes about the learning rate of the steps to come."""
    if prepared.before is None:
        return ""
    before = workdir.resolve(prepared.before, prepared.info)
    return rate.change(before.spec, prepared.manifest.spec, step)


def panel(view: RunView, losses: list[float]) -> Group:
    """The live view: a bar, the loss, the phase, the branches."""
    p = view.progress
    bar, state = Progress(*Progress.get_default_columns()), p.get("state", "starting")
    bar.add_task(
        escape(f"{view.manifest.metadata.name}  epoch {p.get('epoch', 0)}  {state}"),
        total=p.get("total_steps", view.manifest.spec.training.total_steps),
        completed=p.get("step", 0),
    )
    line = Text()
    if p.get("loss") is not None:
        line.append(f"loss {p['loss']:.3f} nats/token  ")
        line.append(sparkline(losses[-60:]), style="cyan")
        line.append(f"  {p['tokens_per_second']:,.0f} tokens/s")
        if p.get("learning_rate_factor", 1.0) != 1.0:
            line.append(f"  learning rate x{p['learning_rate_factor']:.3g}", style="yellow")
    parts: list[Progress | Text | Table] = [bar, line]
    if view.branches:
        parts.append(branch_table(view))
    return Group(*parts)


def sparkline(values: list[float]) -> str:
    """The values as a row of blocks."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def branch_table(view: RunView) -> Table:
    """The branches of a run, one a row."""
    table = Table("branch", "trigger", "phase", "trials", "outcome", "action", box=None)
    for one in view.branches:
        decision = one.decision
        action = decision.action.describe() if decision and decision.action else ""
        trials = sum(len(by) for by in one.trials.values())
        trigger = f"{one.trigger.rule.value} z={one.trigger.z:.1f}"
        table.add_row(one.id, trigger, one.phase, str(trials), one.outcome or "…", action)
    return table
