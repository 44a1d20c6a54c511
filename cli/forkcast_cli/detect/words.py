"""What `forkcast detect` reports of a log: lines for people, a document for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from forkcast_cli.detect.log_detector import LogEvent
from forkcast_cli.detect.logged_run import LoggedRun
from forkcast_cli.detect.session import Session
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.names import Role
from forkcast_monitor.presets import PRESETS

_MOST_SHOWN: Final = 30
_INDENT: Final = "  "
_LEAST_WIDTH: Final = 30
_MOST_STEPS: Final = 4
#: Tiers that ask for a branch.
BRANCHING: Final = frozenset({"branch", "stop"})


def event_line(event: LogEvent) -> str:
    """An event in a line."""
    after = "; the run then went back to an earlier step" if event.abandoned else ""
    at = f" at step {event.tier_step:,}" if event.tier_step != event.step else ""
    return f"step {event.step:,}, {event.tier}{at}: {event.cause}{after}"


def opening_lines(name: str, format_name: str, columns: Columns) -> Iterator[str]:
    """Which format a log was taken for, and which columns; those of our own history are known."""
    yield f"{name}: {format_name}"
    found = columns.found
    if not found:
        return
    unsure = columns.unsure()
    named = [
        f"{role.value} = {found[role]}{' (a guess)' * (role in unsure)}"
        for role in Role
        if role in found and (role is not Role.EPOCH or role in columns.given)
    ]
    missing = [role.value for role in (Role.STEP, Role.GRAD_NORM) if role not in found]
    yield f"columns: {', '.join(named)}" + (f"; no {', no '.join(missing)}" if missing else "")


def closing_lines(session: Session, *, list_events: bool) -> Iterator[str]:
    """The runs of a log, what happened in them, and what is to be known. list_events: not of a
    log that was followed, whose events have been printed already.
    """
    several = len(session.runs) > 1
    for run in session.runs:
        if several:
            yield f"{run.name}:"
        yield run_line(run)
        events = run.detector.events
        if list_events:
            yield from (f"{_INDENT}{event_line(one)}" for one in events[:_MOST_SHOWN])
            if len(events) > _MOST_SHOWN:
                yield f"{_INDENT}... and {len(events) - _MOST_SHOWN:,} more; --json has them all"
        yield from (f"{_INDENT}note: {note}" for note in run.remarks())
    yield from (f"note: {note}" for note in session.remarks())


def run_line(run: LoggedRun) -> str:
    """How long a run is, and how many events it has."""
    number = len(run.detector.events)
    events = "no event" if not number else "1 event" if number == 1 else f"{number:,} events"
    rows = "1 row" if run.rows == 1 else f"{run.rows:,} rows"
    span = "" if run.first is None else f", steps {run.first:,} to {run.last:,}"
    seen = f", {run.validations:,} validations" if run.validations else ""
    return f"{rows}{span}{seen}: {events}"


def comparison_lines(session: Session) -> Iterator[str]:
    """What each preset makes of the log: its events, those of them that ask for a branch, and where the
    first ones are.
    """
    width = max(len(name) for name in session.runs[0].detectors)
    for run in session.runs:
        if len(session.runs) > 1:
            yield f"{run.name}:"
        yield f"{'preset':{width}}  events  branches  at steps"
        for name, detector in run.detectors.items():
            number = len(detector.events)
            branches = sum(one.tier in BRANCHING for one in detector.events)
            steps = [f"{one.step:,}" for one in detector.events[:_MOST_STEPS]]
            more = " ..." if number > len(steps) else ""
            row = f"{name:{width}}  {number:>6,}  {branches:>8,}  {' '.join(steps)}{more}"
            yield row.rstrip()


def document(name: str, session: Session) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "log": name,
        "format": session.format,
        "columns": {role.value: column for role, column in session.columns.found.items()},
        "unsure": {role.value: names for role, names in session.columns.unsure().items()},
        "notes": list(session.remarks()),
        "runs": [_run_document(run) for run in session.runs],
    }


def _run_document(run: LoggedRun) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": run.name,
        "rows": run.rows,
        "first_step": run.first,
        "last_step": run.last,
        "steps_per_row": run.traits.interval(),
        "validations": run.validations,
        "resumes": [{"at": at, "to": to} for at, to in run.resumes],
        "notes": list(run.remarks()),
        "events": [event_document(one) for one in run.detector.events],
    }
    if len(run.detectors) > 1:
        found["presets"] = {
            name: [event_document(one) for one in detector.events]
            for name, detector in run.detectors.items()
        }
        found["rules"] = {name: PRESETS[name].source for name in run.detectors}
    return found


def event_document(event: LogEvent) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "step": event.step,
        "onset": event.onset,
        "tier": event.tier,
        "tier_step": event.tier_step,
        "component": event.component,
        "cause": event.cause,
        "abandoned": event.abandoned,
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
