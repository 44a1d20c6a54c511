"""`kubectl forkcast`: runs and branches of a cluster, through the `kubectl` that calls it.

Read are the TrainingRun and its Branches, with the rights and the context of the user who asks; for the
report also the run's store, if it can be reached from here.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from forkcast_cli.cluster_view import BranchObject, RunObject, branch_table, page, run_lines
from forkcast_cli.cluster_view import explanation as explain_branch
from forkcast_cli.terminal import carry_out, console, print_error, print_notice, shown
from forkcast_wire.resources import LABEL_RUN

_Object = TypeVar("_Object", RunObject, BranchObject)
_FAILED, _BAD_INPUT = 1, 2
_SECONDS = 60
app = typer.Typer(
    name="kubectl-forkcast",
    help="Look at TrainingRuns and their Branches, suspend and resume them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="of the TrainingRun")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="the context's by default")
]
Context = Annotated[str | None, typer.Option("--context", help="of the kubeconfig")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


class KubectlError(Exception):
    """What kubectl said, in one line."""


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except KubectlError as error:
        print_error(error)
        raise typer.Exit(_BAD_INPUT) from None


class Kubectl:
    """Calls of kubectl in one namespace of one context."""

    def __init__(self, namespace: str | None, context: str | None) -> None:
        self._flags = [f"--namespace={namespace}"] if namespace else []
        self._flags += [f"--context={context}"] if context else []

    def __call__(self, *arguments: str) -> str:
        """What it prints. Raises KubectlError."""
        try:
            done = subprocess.run(  # noqa: S603  the program that called us
                ["kubectl", *arguments, *self._flags],  # noqa: S607  found as the caller found it
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
        except FileNotFoundError:
            raise KubectlError("kubectl is not on PATH; install it") from None
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl has not answered for {_SECONDS} s") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["kubectl failed"]
            raise KubectlError(said[-1].removeprefix("error: "))
        return done.stdout

    def run(self, name: str) -> RunObject:
        """A TrainingRun."""
        return self._read(RunObject, json.loads(self("get", "trainingrun", name, "-o", "json")))

    def if_there(self, *arguments: str) -> Any:
        """An object or a list; None if there is none, or it may not be read."""
        try:
            return json.loads(self("get", *arguments, "-o", "json"))
        except KubectlError:
            return None

    def branch(self, name: str) -> BranchObject:
        """A Branch."""
        return self._read(BranchObject, json.loads(self("get", "branch", name, "-o", "json")))

    def branches(self, run: str) -> list[BranchObject]:
        """The Branches of a run, oldest first."""
        found = json.loads(self("get", "branches", "-l", f"{LABEL_RUN}={run}", "-o", "json"))
        read = [self._read(BranchObject, one) for one in found["items"]]
        return sorted(read, key=lambda one: (one.spec.trigger.epoch, one.spec.trigger.step))

    @staticmethod
    def _read(kind: type[_Object], document: Any) -> _Object:
        try:
            return kind.of(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise KubectlError(
                f"{document['metadata']['name']}: {where}: {first['msg']}; "
                "is this plugin as new as the operator?"
            ) from None


@app.command()
def status(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say where a run stands."""
    with _one_line():
        kubectl = Kubectl(namespace, context)
        run = kubectl.run(name)
        found = kubectl.branches(name)
        if as_json:
            print(json.dumps(run.document(found), indent=1))  # noqa: T201
            return
        screen = console()
        for line in run_lines(run):
            screen.print(line)
        if found:
            screen.print(branch_table(found))


@app.command()
def branches(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the branches of a run."""
    with _one_line():
        found = Kubectl(namespace, context).branches(name)
        if as_json:
            print(json.dumps([one.document() for one in found], indent=1))  # noqa: T201
        elif found:
            console().print(branch_table(found))
        else:
            print("no branch was opened")  # noqa: T201


@app.command()
def explain(
    branch: Annotated[str, typer.Argument(help="name of the Branch")],
    namespace: Namespace = None,
    context: Context = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Say why a branch was opened, what was tried, and why it ended as it did."""
    with _one_line():
        found = Kubectl(namespace, context).branch(branch)
        if as_json:
            print(json.dumps(found.document(), indent=1))  # noqa: T201
        else:
            console().print(explain_branch(found))


@app.command()
def report(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the page; NAME.html by default")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of the store as it is reached from here, e.g. a forwarded port"),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Write one HTML page about a run: its state, its history, and every branch. If its store cannot
    be read, only what its objects say.
    """
    with _one_line():
        kubectl = Kubectl(namespace, context)
        run = kubectl.run(name)
        path = output or Path(f"{name}.html")
        text = _page(kubectl, run, endpoint)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise KubectlError(f"{path}: {error.strerror}") from None
        print(path)  # noqa: T201


def _page(kubectl: Kubectl, run: RunObject, endpoint: str | None) -> str:
    from forkcast_cli.cluster_store import (  # the S3 client is slow to import
        NoRecordsError,
        records,
    )
    from forkcast_cli.report import render
    from forkcast_wire.store import StoreError

    try:
        with tempfile.TemporaryDirectory() as folder:
            facts = records(run, kubectl.if_there, Path(folder), endpoint)
    except (NoRecordsError, StoreError, ValueError) as error:
        print_notice(f"without its history: {error}")
        return page(run, kubectl.branches(run.name), shown(str(error)))
    return render(facts, [line.plain for line in run_lines(run)], run.status.conditions)


@app.command()
def suspend(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Stop a run after a checkpoint, in whatever phase it is; `resume` goes on from there."""
    _patch(name, namespace, context, suspended=True)


@app.command()
def resume(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Let a suspended run go on."""
    _patch(name, namespace, context, suspended=False)


def _patch(name: str, namespace: str | None, context: str | None, *, suspended: bool) -> None:
    with _one_line():
        patch = json.dumps({"spec": {"suspend": suspended}})
        kubectl = Kubectl(namespace, context)
        kubectl("patch", "trainingrun", name, "--type=merge", "-p", patch)
        word = "suspended" if suspended else "resumed"
        print(f"trainingrun.forkcast.dev/{name} {word}")  # noqa: T201


def main() -> None:
    """Entry point of `kubectl-forkcast`."""
    carry_out(app, "kubectl-forkcast")
