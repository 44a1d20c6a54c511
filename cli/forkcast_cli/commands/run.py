"""`forkcast run` and `forkcast plan`: a manifest on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from forkcast_cli.commands.base import AsJson, Manifest, look, one_line, print_json
from forkcast_cli.terminal import console, print_error, shown
from forkcast_wire.manifest_file import load_manifest


def run(
    manifest: Manifest,
    workdir: Annotated[
        Path | None, typer.Option(help="where everything is written; runs/<name> by default")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")] = False,  # noqa: FBT002
) -> None:
    """Train on this machine; resume where the folder holds the run already.

    Exit code 0: complete; 2: bad input; 3: failed, or stopped with steps unsaved; 4: trained and saved
    to the end, which the store does not take down now: run it again; 130: interrupted, everything is
    saved.
    """
    with one_line():
        loaded = load_manifest(manifest)
        folder = (workdir or Path("runs") / loaded.metadata.name).resolve()
        from forkcast_cli.run import run as run_here
        from forkcast_cli.supervisor import RunFailedError

        try:
            ending = run_here(loaded, folder, quiet=quiet)
        except RunFailedError as error:
            print_error(error)
            raise typer.Exit(error.code) from None
        if ending.words:
            resume = shlex.join(["forkcast", "run", str(manifest), "--workdir", str(folder)])
            console(quiet=quiet).print(f"{shown(ending.words)}. Resume: {resume}", soft_wrap=True)
            raise typer.Exit(ending.code)
        _end(folder, quiet=quiet)


def _end(folder: Path, *, quiet: bool) -> None:
    from forkcast_cli.report import write_report
    from forkcast_cli.show import status as shown
    from forkcast_wire.documents import DocumentError
    from forkcast_wire.store import StoreUnavailable

    screen = console(quiet=quiet)
    screen.print()
    screen.print(shown(folder, look(folder, if_there=True)))
    try:
        path = write_report(folder, folder / "report.html")
    except (StoreUnavailable, DocumentError) as error:  # the run is complete all the same
        screen.print(f"no report now: {error}; write it by: forkcast report {folder}")
    else:
        screen.print(f"report: {path}", soft_wrap=True)


def plan(
    manifest: Manifest,
    workdir: Annotated[
        Path | None, typer.Option(help="a folder that holds this run: plan how it goes on")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say what a manifest will take: steps, memory, checkpoints, the cost of a branch."""
    from forkcast_cli.plan import lines
    from forkcast_cli.plan import plan as plan_of
    from forkcast_cli.workdir import going_on

    with one_line():
        loaded = load_manifest(manifest)
        planned = plan_of(loaded if workdir is None else going_on(workdir, loaded))
        if as_json:
            print_json(planned.document())
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, figure in lines(planned):
            table.add_row(name, figure)
        console().print(table)
