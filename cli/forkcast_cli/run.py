"""`forkcast run`: the whole loop on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from forkcast_cli import rate, words, workdir
from forkcast_cli.ending import COMPLETE, INTERRUPTED, Ending, news, of_this_start, stopped, unsaved
from forkcast_cli.store_watch import StoreWatch
from forkcast_cli.supervisor import Supervisor
from forkcast_cli.terminal import console, print_notice
from forkcast_cli.view import RunReader, RunView
from forkcast_wire.manifest import Storage, TrainingRun
from forkcast_wire.manifest_file import ManifestError, absent_secrets, refuse_cluster_only
from forkcast_wire.process import configure_logging
from forkcast_wire.store import StoreRefused, StoreUnavailable, open_store, wait_for
from forkcast_wire.termination import stop_event_on_sigterm

_LOOK_SECONDS = 0.2
_SHOW_SECONDS = 1.0
#: How long a run that has never used its store waits for it, and a start for the first look at it.
_PATIENCE_SECONDS, _FIRST_LOOK_SECONDS = 60.0, 20.0
_MORE = "spec.training.totalSteps to train on"
_BLOCKS = " ▁▂▃▄▅▆▇█"


def run(manifest: TrainingRun, folder: Path, *, quiet: bool) -> Ending:
    """Run until the run is complete, or until it is told to stop.

    Raises ManifestError, RunFailedError; StoreError where the store cannot be reached at the start.
    """
    refuse_cluster_only(manifest.spec)
    with workdir.locked(folder):
        prepared = workdir.prepare(folder, manifest)
        for notice in (*prepared.notices, *absent_secrets(manifest.spec, os.environ)):
            print_notice(notice)
        stop, screen = stop_event_on_sigterm(), console(quiet=quiet)
        if not _reach_store(prepared.manifest.spec.storage, folder, stop, screen):
            return Ending("stopped while the store was away; nothing was started", INTERRUPTED)
        with (folder / "logs" / "supervisor.log").open("a") as log:
            streams, sys.stderr = (sys.stdout, sys.stderr), log
            try:
                configure_logging("supervisor")
                return _supervised(prepared, folder, stop, screen)
            finally:
                sys.stdout, sys.stderr = streams


def _reach_store(storage: Storage, folder: Path, stop: threading.Event, screen: Console) -> bool:
    """Try the store once for all processes of the run, so that bad input is told at once. A store
    that does not answer is waited for: a minute, and without end if the run has used it before.

    False where it was told to stop meanwhile. Raises StoreError, ManifestError.
    """
    used, begun = (folder / "progress.json").exists(), time.monotonic()
    waiting = False

    def tell(error: StoreUnavailable) -> None:
        nonlocal waiting
        late = not used and time.monotonic() - begun > _PATIENCE_SECONDS
        if isinstance(error, StoreRefused) or storage.bucket is None or late:
            raise error
        if not waiting:
            screen.print(f"store away: {error.why}; waiting for it", soft_wrap=True)
        waiting = True

    try:
        wait_for(lambda: open_store(storage, folder), stop, tell=tell)
    except StoreUnavailable as error:
        if stop.is_set():
            return False
        if storage.bucket is None:
            field = "--workdir" if storage.path is None else "spec.storage.path"
            raise ManifestError(field, str(error), "make it writable, or change it") from None
        raise
    return True


def _supervised(
    prepared: workdir.Prepared, folder: Path, stop: threading.Event, screen: Console
) -> Ending:
    spec, reader = prepared.manifest.spec, RunReader(folder)
    watch = StoreWatch(spec.storage, reader.look_past_damage)
    supervisor = Supervisor(spec, folder, watch.complete_since)
    try:
        view = watch.first(_FIRST_LOOK_SECONDS).view
        if view is not None and view.complete is not None:
            # nothing is left to train; a branch may still have to end
            total = spec.training.total_steps
            if view.active == 0:
                screen.print(f"complete since step {view.complete.step} of {total}; raise {_MORE}")
                return Ending("", COMPLETE)
            supervisor.children["trainer"].done = True
        elif said := _about_the_rate(prepared, reader.progress().get("step", 0)):
            screen.print(f"learning rate: {said}", soft_wrap=True)
        if _until_done(supervisor, watch, reader, folder, stop, screen):
            return Ending("", COMPLETE)
    finally:
        supervisor.stop()
        watch.close()
    return stopped(reader.progress(), supervisor.trainer_code)


def _until_done(
    supervisor: Supervisor,
    watch: StoreWatch,
    reader: RunReader,
    folder: Path,
    stop: threading.Event,
    screen: Console,
) -> bool:
    """Supervise and show; True where the run is complete, False where it was told to stop."""
    losses: list[float] = []
    told: dict[str, str] = {}
    former = reader.progress().get("attempt")
    last_shown, trouble = 0.0, ""
    with Live(console=screen, refresh_per_second=2, transient=False) as live:
        while not stop.is_set():
            supervisor.look()
            if supervisor.trouble not in ("", trouble):
                trouble = supervisor.trouble
                screen.print(trouble, soft_wrap=True)
            seen, progress = watch.seen, of_this_start(reader.progress(), former)
            now = {"store away": seen.away, "saving": unsaved(progress)}
            now["recording the end"] = progress.get("end_error", "")
            now["statistics"] = progress.get("history_gap", "")
            now["disk"] = workdir.full(folder)
            now["records"] = "; ".join(seen.view.damaged) if seen.view is not None else ""
            for one in seen.view.refused if seen.view is not None else ():
                now.setdefault(f"triggers, {one.reason.value}", one.words)
            for line in news(told, now):
                screen.print(line, soft_wrap=True)
            view = reader.local(progress, seen.view, seen.away)
            if seen.view is not None and supervisor.finished(seen.view.active):
                live.update(panel(view, losses))
                return True
            if screen.is_terminal and time.monotonic() - last_shown > _SHOW_SECONDS:
                last_shown = time.monotonic()
                if (loss := progress.get("loss")) is not None:
                    losses.append(loss)
                live.update(panel(view, losses))
            stop.wait(_LOOK_SECONDS)
    return False


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
        escape(f"{view.name}  epoch {p.get('epoch', 0)}  {state}"),
        total=p.get("total_steps") or view.total_steps or None,
        completed=p.get("step", 0),
    )
    line = Text()
    if p.get("loss") is not None:
        line.append(f"loss {p['loss']:.3f} nats/token  ")
        line.append(sparkline(losses[-60:]), style="cyan")
        line.append(f"  {pace(p)}")
        if said := words.passes(p):
            line.append(f"  passes over the text: {said}", style="dim")
        if p.get("learning_rate_factor", 1.0) != 1.0:
            line.append(f"  learning rate x{p['learning_rate_factor']:.3g}", style="yellow")
    parts: list[Progress | Text | Table] = [bar, line]
    parts += [Text(trouble, style="yellow") for trouble in troubles(view, running=True)]
    if view.branches:
        parts.append(branch_table(view))
    if view.refused:
        parts.append(Text(words.refused_sentence(view.refused), style="dim"))
    return Group(*parts)


def pace(progress: Mapping[str, Any]) -> str:
    """How fast the run is: a watched one may not know its tokens."""
    if "tokens_per_second" in progress:
        return f"{progress['tokens_per_second']:,.0f} tokens/s"
    return f"{progress.get('steps_per_second', 0.0):,.2f} steps/s"


def troubles(view: RunView, *, running: bool) -> list[str]:
    """What is wrong with the store now, in lines. running: whether the run is."""
    away = f"store away: {view.away}" if view.away else ""
    if away and running:
        away += "; training goes on without it"
    gap = view.progress.get("history_gap", "")
    return [line for line in (away, unsaved(view.progress), gap, *view.damaged) if line]


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
        action = f"{action} (decision.json was edited)".lstrip() if one.edited else action
        table.add_row(one.id, trigger, one.phase, str(trials), one.outcome or "…", action)
    return table
