"""What `forkcast detect` says of a log: lines for people, a document for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from forkcast_cli.detect.judge import Happening
from forkcast_cli.detect.session import Session
from forkcast_cli.detect.watched import WatchedRun
from forkcast_cli.logs.columns import Columns, Role

_MOST_SHOWN: Final = 30
_INDENT: Final = "  "
_LEAST_WIDTH: Final = 30


def event_line(happening: Happening) -> str:
    """A happening in a line."""
    since = f" (since {happening.onset:,})" if happening.onset < happening.step else ""
    after = "; the run then went back to an earlier step" if happening.abandoned else ""
    return f"step {happening.step:,}{since}, {happening.tier}: {happening.cause}{after}"


def opening_lines(name: str, format_name: str, columns: Columns) -> Iterator[str]:
    """Which format a log was taken for, and which columns; those of our own history are known."""
    yield f"{name}: {format_name}"
    found = columns.found
    if not found:
        return
    told = [f"{role.value} = {found[role]}" for role in Role if role in found]
    missing = [role.value for role in (Role.STEP, Role.GRAD_NORM) if role not in found]
    yield f"columns: {', '.join(told)}" + (f"; no {', no '.join(missing)}" if missing else "")


def closing_lines(session: Session, *, events: bool) -> Iterator[str]:
    """The runs of a log, what happened in them, and what is to be known. events: whether they are
    listed; a log that was followed has had them told already.
    """
    several = len(session.runs) > 1
    for run in session.runs:
        if several:
            yield f"{run.name}:"
        yield run_line(run)
        happenings = run.judge.happenings
        if events:
            yield from (f"{_INDENT}{event_line(one)}" for one in happenings[:_MOST_SHOWN])
            if len(happenings) > _MOST_SHOWN:
                yield f"{_INDENT}... and {len(happenings) - _MOST_SHOWN:,} more; --json has them all"
        yield from (f"{_INDENT}note: {note}" for note in run.remarks())
    yield from (f"note: {note}" for note in session.remarks())


def run_line(run: WatchedRun) -> str:
    """How long a run is, and how many events it has."""
    number = len(run.judge.happenings)
    events = "no event" if not number else "1 event" if number == 1 else f"{number:,} events"
    rows = "1 row" if run.rows == 1 else f"{run.rows:,} rows"
    span = "" if run.first is None else f", steps {run.first:,} to {run.last:,}"
    seen = f", {run.validations:,} validations" if run.validations else ""
    return f"{rows}{span}{seen}: {events}"


def comparison_lines(session: Session) -> Iterator[str]:
    """What each preset makes of the log: events, per 100,000 rows, and the first of them."""
    width = max(len(name) for name in session.runs[0].judges)
    for run in session.runs:
        if len(session.runs) > 1:
            yield f"{run.name}:"
        yield f"{'preset':{width}}  {'events':>6}  {'/100k':>7}  at steps"
        for name, judge in run.judges.items():
            number = len(judge.happenings)
            rate = 1e5 * number / run.rows if run.rows else 0.0
            steps = [f"{one.step:,}" for one in judge.happenings[:4]]
            more = " ..." if number > len(steps) else ""
            yield f"{name:{width}}  {number:>6,}  {rate:>7.1f}  {' '.join(steps)}{more}".rstrip()


def document(name: str, session: Session) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "log": name,
        "format": session.format,
        "columns": {role.value: column for role, column in session.columns.found.items()},
        "notes": list(session.remarks()),
        "runs": [_run_document(run) for run in session.runs],
    }


def _run_document(run: WatchedRun) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": run.name,
        "rows": run.rows,
        "first_step": run.first,
        "last_step": run.last,
        "steps_per_row": run.traits.interval(),
        "validations": run.validations,
        "resumes": [{"at": at, "to": to} for at, to in run.resumes],
        "notes": list(run.remarks()),
        "events": [event_document(one) for one in run.judge.happenings],
    }
    if len(run.judges) > 1:
        found["presets"] = {
            name: [event_document(one) for one in judge.happenings]
            for name, judge in run.judges.items()
        }
    return found


def event_document(happening: Happening) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "step": happening.step,
        "onset": happening.onset,
        "tier": happening.tier,
        "component": happening.component,
        "cause": happening.cause,
        "abandoned": happening.abandoned,
    }


def wrapped(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines no wider than a terminal, with what goes over indented; a file's lines stay whole."""
    for line in lines:
        if width is None or len(line) <= width:
            yield line
            continue
        indent = line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line,
            max(width, _LEAST_WIDTH),
            subsequent_indent=indent + _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )


def head_lines(head: Sequence[str]) -> Iterator[str]:
    """The first lines of a log that no format fits."""
    if head:
        yield "it begins:"
        yield from (f"{_INDENT}{line}" for line in head)
