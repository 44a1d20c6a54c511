"""`forkcast checkpoint`: the saved states of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from forkcast_cli.commands.base import AsJson, Folder, look, one_line, print_json
from forkcast_cli.terminal import console, shown

app = typer.Typer(help="List, verify and export the saved states of a run.", no_args_is_help=True)


@app.command()
def ls(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List the saved states."""
    from forkcast_cli.checkpoints import listing
    from forkcast_cli.plan import size

    with one_line():
        look(folder)
        found = listing(folder)
        if as_json:
            print_json([one.document() for one in found])
            return
        table = Table("kind", "epoch", "attempt", "step", "size", "good", "pinned by", "", box=None)
        for one in found:
            ref = one.state
            cells = (ref.kind.value, ref.epoch, ref.attempt, ref.step, size(ref.size_bytes))
            pins = ", ".join(one.pins)
            gap = f"{one.unrecorded} steps before it not in the history" if one.unrecorded else ""
            table.add_row(*map(str, cells), "good" if ref.good else "", pins, gap)
        console().print(table)


@app.command()
def verify(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Read every saved state back and check every byte; exit code 1 where one is damaged."""
    import tempfile

    from forkcast_cli.checkpoints import verify as verify_all
    from forkcast_wire.run_folder import read_identity

    with one_line(), tempfile.TemporaryDirectory() as scratch:
        look(folder)
        uid = read_identity(folder).uid
        results = verify_all(folder, uid, Path(scratch))
    if as_json:
        print_json([{"key": one.key, "error": one.error} for one in results])
    else:
        for one in results:
            print(shown(f"{'damaged' if one.error else 'ok':8}{one.key}  {one.error}".rstrip()))
    if any(one.error for one in results):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Folder,
    place: Annotated[Path, typer.Argument(help="the file or folder to write; it must not exist")],
    step: Annotated[
        int | None, typer.Option(help="of the state; default: the newest state of the run")
    ] = None,
    kind: Annotated[
        str, typer.Option("--as", help="hugging-face (a folder), safetensors, or torch")
    ] = "hugging-face",
) -> None:
    """Write the model's weights of a saved state for other tools."""
    import tempfile

    from forkcast_cli.checkpoints import export as export_weights

    with one_line(), tempfile.TemporaryDirectory() as scratch:
        look(folder)
        ref = export_weights(folder, step, kind, place, Path(scratch))
    print(shown(f"{ref.key}  {place}"))
