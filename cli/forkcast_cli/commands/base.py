"""What the commands share: arguments, errors, and the run that is looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forkcast_cli.terminal import print_error
from forkcast_wire.manifest_file import ManifestError

if TYPE_CHECKING:
    from forkcast_cli.view import RunView

BAD_INPUT, FAILED = 2, 3
Folder = Annotated[Path, typer.Argument(help="the run's work directory")]
Manifest = Annotated[Path, typer.Argument(help="a TrainingRun manifest, YAML")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextmanager
def one_line() -> Iterator[None]:
    """Bad input ends the command with one line for each fault and exit code 2; a store that is
    away with exit code 3.
    """
    from forkcast_wire.documents import DocumentError
    from forkcast_wire.store import StoreError, StoreRefused, StoreUnavailable

    try:
        yield
    except StoreUnavailable as error:
        print_error(error)
        raise typer.Exit(BAD_INPUT if isinstance(error, StoreRefused) else FAILED) from None
    except (ManifestError, DocumentError, StoreError) as error:
        for line in error.lines() if isinstance(error, ManifestError) else [str(error)]:
            print_error(line)
        raise typer.Exit(BAD_INPUT) from None


def look(folder: Path, *, if_there: bool = False, whole: bool = False) -> RunView:
    """if_there: without the store, too, if it is away. whole: refuses damaged records, which are
    otherwise named on the error output and left out.
    """
    from forkcast_cli.view import RunReader

    try:
        reader = RunReader(folder)
        if if_there:
            return reader.look_if_there()  # the view is shown with what it lacks
        if whole:
            return reader.look()
        view = reader.look_past_damage()
        for line in view.damaged:
            print_error(line)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(str(folder), "holds no run", "give the --workdir of a run") from None
    return view


def print_json(document: Any) -> None:
    """For scripts."""
    print(json.dumps(document, indent=1, sort_keys=True))
