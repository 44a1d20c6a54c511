"""`forkcast doctor`: what this machine lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from forkcast_cli.commands.base import AsJson, print_json
from forkcast_cli.terminal import console

_LOW = "yellow"


def doctor(
    workdir: Annotated[Path, typer.Option(help="where runs would be written")] = Path("runs"),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say what is missing here, and how to get it."""
    from dataclasses import asdict

    from forkcast_cli.doctor import examine

    checks = examine(workdir.resolve())
    if as_json:
        print_json([asdict(one) for one in checks])
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for one in checks:
            word, style = (
                ("ok", "green") if one.ok else ("no", "red") if one.needed else ("--", _LOW)
            )
            remedy = "" if one.ok else f"\n{one.remedy}"
            table.add_row(Text(word, style), one.name, Text.assemble(one.found, (remedy, _LOW)))
        console().print(table)
    if any(one.needed and not one.ok for one in checks):
        raise typer.Exit(1)
