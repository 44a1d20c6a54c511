"""`forkcast detect`: anybody's log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forkcast_cli.commands.base import AsJson, one_line


def detect(
    log: Annotated[
        str, typer.Argument(help="a log, a folder that holds one, or - for standard input")
    ],
    columns: Annotated[
        str,
        typer.Option(
            help="what is not to be guessed: step=NAME,loss=NAME,grad_norm=NAME,lr=NAME,..."
        ),
    ] = "",
    manifest: Annotated[
        Path | None, typer.Option(help="take the detector's rules from this manifest")
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="a rule by itself, e.g. trigger.singleZ=4; repeatable")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="another detector: OlmoCore, LlmFoundry, Lightning, Megatron, ...")
    ] = "",
    compare: Annotated[  # noqa: FBT002
        bool, typer.Option("--compare", help="what every preset makes of it, side by side")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="draw it: a path in .html, .svg or .png")
    ] = None,
    follow: Annotated[  # noqa: FBT002
        bool, typer.Option("--follow", "-f", help="the file grows: tell events as they come")
    ] = False,
    tee: Annotated[  # noqa: FBT002
        bool, typer.Option("--tee", help="pass standard input on; events go to the error output")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Send any training log through the detector and say what it would have seen, and when.

    Columns are guessed; a loss alone is enough. Exit code 0: read; 2: bad input; 3: no format fits.
    """
    from forkcast_cli.detect.command import detect as detect_in
    from forkcast_cli.detect.request import request_for

    with one_line():
        request = request_for(
            log,
            columns=columns,
            manifest=manifest,
            rules=rule or (),
            preset=preset,
            compare=compare,
            plot=plot,
            follow=follow,
            tee=tee,
            as_json=as_json,
        )
        code = detect_in(request)
    raise typer.Exit(code)
