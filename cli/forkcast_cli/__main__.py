"""The `forkcast` command. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from forkcast_cli.terminal import carry_out, console, print_error, print_notice, shown
from forkcast_wire.manifest_file import ManifestError, load_manifest

if TYPE_CHECKING:
    from forkcast_cli.view import RunView

_RUN, _LOOK, _MORE = "Run", "Look at a run", "Before and beside"
_BAD_INPUT, _FAILED = 2, 3
_LOW = "yellow"
app = typer.Typer(
    help="Fork a failing LLM training run, try the alternatives for real, continue with the winner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
checkpoint = typer.Typer(help="List and verify the saved states of a run.", no_args_is_help=True)
app.add_typer(checkpoint, name="checkpoint", rich_help_panel=_MORE)

Folder = Annotated[Path, typer.Argument(help="the run's work directory")]
Manifest = Annotated[Path, typer.Argument(help="a TrainingRun manifest, YAML")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextmanager
def _one_line() -> Iterator[None]:
    """Bad input ends the command with one line for each fault and exit code 2; a store that is
    away with exit code 3.
    """
    from forkcast_wire.documents import DocumentError
    from forkcast_wire.store import StoreError, StoreRefused, StoreUnavailable

    try:
        yield
    except StoreUnavailable as error:
        print_error(error)
        raise typer.Exit(_BAD_INPUT if isinstance(error, StoreRefused) else _FAILED) from None
    except (ManifestError, DocumentError, StoreError) as error:
        for line in error.lines() if isinstance(error, ManifestError) else [str(error)]:
            print_error(line)
        raise typer.Exit(_BAD_INPUT) from None


def _look(folder: Path, *, if_there: bool = False, whole: bool = False) -> RunView:
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


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, sort_keys=True))


# --------------------------------------------------------------------------------------------- run


@app.command(rich_help_panel=_RUN)
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
    with _one_line():
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
    screen.print(shown(folder, _look(folder, if_there=True)))
    try:
        path = write_report(folder, folder / "report.html")
    except (StoreUnavailable, DocumentError) as error:  # the run is complete all the same
        screen.print(f"no report now: {error}; write it by: forkcast report {folder}")
    else:
        screen.print(f"report: {path}", soft_wrap=True)


# -------------------------------------------------------------------------------------------- look


@app.command(rich_help_panel=_LOOK)
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="until the run ends")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say where a run stands."""
    from forkcast_cli import show

    with _one_line():
        view = _look(folder, if_there=True)
        if as_json:
            _print_json(show.status_document(folder, view))
        elif watch:
            show.watch(folder, console())
        else:
            console().print(show.status(folder, view))


@app.command(rich_help_panel=_LOOK)
def branches(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List the branches of a run."""
    from forkcast_cli import show
    from forkcast_cli.run import branch_table

    with _one_line():
        view = _look(folder)
        if as_json:
            _print_json([show.branch_document(one) for one in view.branches])
        elif view.branches:
            console().print(branch_table(view))
        else:
            print("no branch was opened")


@app.command(rich_help_panel=_LOOK)
def explain(
    branch: Annotated[str, typer.Argument(help="e.g. e0-t288, or `last`")],
    folder: Annotated[
        Path, typer.Option("--workdir", "-d", help="the run's work directory")
    ] = Path(),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say why a branch was opened, what was tried, and why it ended as it did."""
    from forkcast.canonical import plain
    from forkcast_cli import show, words

    with _one_line():
        view = _look(folder, whole=True)
        found = show.find_branch(view, branch)
        if found is None:
            known = ", ".join(one.id for one in view.branches) or "none"
            raise ManifestError(branch, "no such branch", f"known: {known}")
        if as_json:
            decision = plain(found.decision) if found.decision else None
            _print_json({"id": found.id, "why": words.sentences(found), "decision": decision})
        else:
            console().print(show.explain(found))


@app.command(rich_help_panel=_LOOK)
def report(
    folder: Annotated[
        Path, typer.Argument(help="the run's work directory, or a manifest that names its storage")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the page; DIR/report.html by default")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Write the report: one HTML page with plots, decisions and metrics."""
    from forkcast_cli.facts import gather
    from forkcast_cli.report import report_document, write_report

    with _one_line():
        _look(folder)
        if as_json:
            _print_json(report_document(gather(folder)))
            return
        try:
            beside = folder.with_suffix(".html") if folder.is_file() else folder / "report.html"
            print(write_report(folder, output or beside))
        except OSError as error:
            raise ManifestError("--output", str(error), "choose a writable file") from None


@app.command(rich_help_panel=_LOOK)
def runs(
    root: Annotated[Path, typer.Argument(help="a folder that holds runs")] = Path("runs"),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Index all runs below a folder, branch by branch, into its runs.parquet."""
    from forkcast_cli.runs import write_index

    with _one_line():
        path, rows = write_index(root)
        if as_json:
            _print_json(rows)
            return
        table = Table("run", "branch", "tried", "outcome", "accepted", box=None, pad_edge=False)
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in rows:
            key = (row["folder"], row["run"], row.get("branch") or row.get("not_read") or "-")
            groups.setdefault(key, []).append(row)
        for (_, name, branch), members in groups.items():
            if why := members[0].get("not_read"):
                table.add_row(name, "?", "", f"not read: {why}", "")
                continue
            won = next((m["action"] for m in members if m.get("verdict") == "Accepted"), "")
            tried = sum(m.get("candidate") is not None for m in members)
            table.add_row(name, branch, str(tried), members[0].get("outcome") or "", won)
        screen = console()
        screen.print(table)
        screen.print(f"{len(rows)} rows in {path}", soft_wrap=True)


@app.command(rich_help_panel=_LOOK)
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

    with _one_line():
        try:
            targets = export_to(
                lambda: load_run(place, endpoint=endpoint), to, follow=follow, tell=print_notice
            )
        except HistoryError as error:
            raise ManifestError(place, str(error), "restore it from a copy, or delete it") from None
        if as_json:
            _print_json(
                [{"to": one.spec, "steps": one.steps, "events": one.events} for one in targets]
            )
            return
        for one in targets:
            print(shown(f"{one.spec}: {one.steps} steps and {one.events} events added"))


# -------------------------------------------------------------------------------- before and beside


@app.command(rich_help_panel=_RUN)
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

    with _one_line():
        loaded = load_manifest(manifest)
        planned = plan_of(loaded if workdir is None else going_on(workdir, loaded))
        if as_json:
            _print_json(planned.document())
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, figure in lines(planned):
            table.add_row(name, figure)
        console().print(table)


@app.command(rich_help_panel=_MORE)
def detect(
    log: Annotated[
        str, typer.Argument(help="a log, a folder that holds one, or - for standard input")
    ],
    columns: Annotated[
        str,
        typer.Option(help="what is not to be guessed: step=NAME,loss=NAME,grad_norm=NAME,lr=NAME"),
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

    with _one_line():
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


@app.command(rich_help_panel=_MORE)
def doctor(
    workdir: Annotated[Path, typer.Option(help="where runs would be written")] = Path("runs"),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say what is missing here, and how to get it."""
    from dataclasses import asdict

    from forkcast_cli.doctor import examine

    checks = examine(workdir.resolve())
    if as_json:
        _print_json([asdict(one) for one in checks])
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


@checkpoint.command("ls")
def checkpoint_ls(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List the saved states."""
    from forkcast_cli.checkpoints import listing
    from forkcast_cli.plan import size

    with _one_line():
        _look(folder)
        found = listing(folder)
        if as_json:
            _print_json([one.document() for one in found])
            return
        table = Table("kind", "epoch", "attempt", "step", "size", "good", "pinned by", "", box=None)
        for one in found:
            ref = one.state
            cells = (ref.kind.value, ref.epoch, ref.attempt, ref.step, size(ref.size_bytes))
            pins = ", ".join(one.pins)
            gap = f"{one.unrecorded} steps before it not in the history" if one.unrecorded else ""
            table.add_row(*map(str, cells), "good" if ref.good else "", pins, gap)
        console().print(table)


@checkpoint.command("verify")
def checkpoint_verify(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Read every saved state back and check every byte; exit code 1 where one is damaged."""
    import tempfile

    from forkcast_cli.checkpoints import verify
    from forkcast_wire.run_folder import read_identity

    with _one_line(), tempfile.TemporaryDirectory() as scratch:
        _look(folder)
        uid = read_identity(folder).uid
        results = verify(folder, uid, Path(scratch))
    if as_json:
        _print_json([{"key": one.key, "error": one.error} for one in results])
    else:
        for one in results:
            print(shown(f"{'damaged' if one.error else 'ok':8}{one.key}  {one.error}".rstrip()))
    if any(one.error for one in results):
        raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    carry_out(app, "forkcast")


if __name__ == "__main__":
    main()
