"""The `forkcast` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forkcast_wire.manifest_file import ManifestError, load_manifest

app = typer.Typer(
    help="Fork a failing LLM training run, try the alternatives for real, continue with the winner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_FOLDER = typer.Argument(help="the run's work directory")
_BAD_INPUT = 2


def _fail(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(_BAD_INPUT)


@app.command()
def run(
    manifest: Annotated[Path, typer.Argument(help="a TrainingRun manifest, YAML")],
    workdir: Annotated[
        Path | None, typer.Option(help="where everything is written; runs/<name> by default")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print the end only")] = False,  # noqa: FBT002
) -> None:
    """Train on this machine; resume where the folder holds the run already."""
    try:
        loaded = load_manifest(manifest)
        folder = (workdir or Path("runs") / loaded.metadata.name).resolve()
        from forkcast_cli.run import run as run_here
        from forkcast_cli.supervisor import RunFailedError

        try:
            complete = run_here(loaded, folder, quiet=quiet)
        except RunFailedError as error:
            raise _fail(error) from None
    except ManifestError as error:
        raise _fail(error) from None
    if not complete:
        print(f"stopped; everything is saved. Resume: forkcast run {manifest} --workdir {folder}")
        raise typer.Exit(130)
    _summary(folder)


def _summary(folder: Path) -> None:
    from forkcast_cli.run import branch_table
    from forkcast_cli.view import look

    view, console = look(folder), Console()
    if view.complete is not None:
        console.print(
            f"[bold]{view.manifest.metadata.name}[/] complete: step {view.complete.step}, epoch "
            f"{view.complete.epoch}, validation loss {view.complete.validation_loss:.4f} nats/token"
        )
    if view.branches:
        console.print(branch_table(view))


@app.command()
def branches(folder: Annotated[Path, _FOLDER]) -> None:
    """List the branches of a run."""
    try:
        _summary(folder)
    except FileNotFoundError:
        raise _fail(ManifestError(str(folder), "holds no run", "give a work directory")) from None


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
