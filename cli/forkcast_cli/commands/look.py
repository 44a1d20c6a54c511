"""Commands that look at a run: status, branches, explain, report, and the index of many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from forkcast_cli.commands.base import AsJson, Folder, look, one_line, print_json
from forkcast_cli.terminal import console
from forkcast_wire.manifest_file import ManifestError


def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="until the run ends")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say where a run stands."""
    from forkcast_cli import show

    with one_line():
        view = look(folder, if_there=True)
        if as_json:
            print_json(show.status_document(folder, view))
        elif watch:
            show.watch(folder, console())
        else:
            console().print(show.status(folder, view))


def branches(folder: Folder, as_json: AsJson = False) -> None:  # noqa: FBT002
    """List the branches of a run."""
    from forkcast_cli import show
    from forkcast_cli.run import branch_table

    with one_line():
        view = look(folder)
        if as_json:
            print_json([show.branch_document(one) for one in view.branches])
        elif view.branches:
            console().print(branch_table(view))
        else:
            print("no branch was opened")


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

    with one_line():
        view = look(folder, whole=True)
        found = show.find_branch(view, branch)
        if found is None:
            known = ", ".join(one.id for one in view.branches) or "none"
            raise ManifestError(branch, "no such branch", f"known: {known}")
        if as_json:
            decision = plain(found.decision) if found.decision else None
            print_json({"id": found.id, "why": words.sentences(found), "decision": decision})
        else:
            console().print(show.explain(found))


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

    with one_line():
        look(folder)
        if as_json:
            print_json(report_document(gather(folder)))
            return
        try:
            beside = folder.with_suffix(".html") if folder.is_file() else folder / "report.html"
            print(write_report(folder, output or beside))
        except OSError as error:
            raise ManifestError("--output", str(error), "choose a writable file") from None


def runs(
    root: Annotated[Path, typer.Argument(help="a folder that holds runs")] = Path("runs"),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Index all runs below a folder, branch by branch, into its runs.parquet."""
    from forkcast_cli.runs import write_index

    with one_line():
        path, rows = write_index(root)
        if as_json:
            print_json(rows)
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
        screen.print(f"{len(rows)} row{'s' * (len(rows) != 1)} in {path}", soft_wrap=True)
