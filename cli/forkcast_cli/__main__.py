"""The `forkcast` command: which commands there are."""

from __future__ import annotations

from typing import Final

import typer

from forkcast_cli.commands import checkpoint, detect, doctor, export, look, run
from forkcast_cli.terminal import carry_out

_MORE: Final = "Before and beside"
#: By heading, in the order of the help.
_COMMANDS: Final = {
    "Run": (run.run, run.plan),
    "Look at a run": (
        look.status,
        look.branches,
        look.explain,
        look.report,
        look.runs,
        export.export,
    ),
    _MORE: (detect.detect, doctor.doctor),
}

app = typer.Typer(
    help="Fork a failing LLM training run, try the alternatives for real, continue with the winner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _heading, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_heading)(_command)
app.add_typer(checkpoint.app, name="checkpoint", rich_help_panel=_MORE)


def main() -> None:
    """Entry point."""
    carry_out(app, "forkcast")


if __name__ == "__main__":
    main()
