"""`forkcast export`: a run into a tracker."""

from __future__ import annotations

from typing import Annotated

import typer

from forkcast_cli.commands.base import AsJson, one_line, print_json
from forkcast_cli.terminal import print_notice, shown
from forkcast_wire.manifest_file import ManifestError


def export(
    place: Annotated[
        str,
        typer.Argument(help="a run's work directory, a store's folder, or s3://BUCKET/PREFIX"),
    ],
    to: Annotated[
        list[str],
        typer.Option(help="jsonl:FILE, tensorboard:DIR, mlflow:EXPERIMENT or wandb:PROJECT"),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the run ends")] = False,  # noqa: FBT002
    endpoint: Annotated[
        str | None, typer.Option(help="of the S3 API; AWS_ENDPOINT_URL or AWS by default")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Write a run's steps and events into a tracker. Run again, it adds what is new."""
    from forkcast_cli.export import export as export_to
    from forkcast_wire.loaded_run import load_run
    from forkcast_wire.statistics import HistoryError

    with one_line():
        try:
            targets = export_to(
                lambda: load_run(place, endpoint=endpoint), to, follow=follow, tell=print_notice
            )
        except HistoryError as error:
            raise ManifestError(place, str(error), "restore it from a copy, or delete it") from None
        if as_json:
            print_json(
                [{"to": one.spec, "steps": one.steps, "events": one.events} for one in targets]
            )
            return
        for one in targets:
            print(shown(f"{one.spec}: {one.steps} steps and {one.events} events added"))
