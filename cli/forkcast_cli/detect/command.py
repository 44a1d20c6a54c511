"""`forkcast detect LOG`, from its options to its exit code.

A program whose output is piped into it must not notice: whatever goes wrong here, and whatever becomes
of our own output, the pipe is read until it is closed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from forkcast_cli.detect import own, words
from forkcast_cli.detect.log_detector import LogEvent
from forkcast_cli.detect.logged_run import LoggedRun
from forkcast_cli.detect.plot import PlotError, write_plot
from forkcast_cli.detect.request import STDIN, Request
from forkcast_cli.detect.session import Session
from forkcast_cli.logs import tensorboard
from forkcast_cli.logs.base import LogError, NothingFitsError
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.opening import Log, open_log
from forkcast_cli.logs.stream import Stop, Stream, file_source, growing_source, pipe_source
from forkcast_cli.terminal import print_error, shown

BAD_INPUT: Final = 2
NOTHING_FITS: Final = 3
_STATUS: Final = "use forkcast status --watch"
#: What a folder may hold beside a history of ours, the likeliest first.
_IN_FOLDERS: Final = (
    "*.wandb",
    "trainer_state.json",
    "metrics.csv",
    "metrics.jsonl",
    "main.log",
    "log.txt",
)
_EVENT_FILES: Final = "events.out.tfevents.*"
#: Folders in folders that are looked at, and logs that are named if there are several.
_DEEPEST: Final = 4
_MOST_NAMED: Final = 4
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,9})$")


@dataclass(slots=True)
class _Screen:
    """Where lines go. A reader that has gone away ends no watching."""

    request: Request
    gone: bool = field(default=False)

    def lines(self, lines: Iterable[str]) -> None:
        """Print and flush."""
        if self.gone:
            return
        out = sys.stderr if self.request.tee else sys.stdout
        width = _width(out.fileno()) if out.isatty() else None
        try:
            for line in words.wrapped(lines, width):
                print(shown(line), file=out)
            out.flush()
        except BrokenPipeError:
            if not self.request.live:
                raise
            self.gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _width(descriptor: int) -> int | None:
    try:
        return os.get_terminal_size(descriptor).columns
    except OSError:
        return None


def detect(request: Request) -> int:
    """Read, fold, report. The exit code."""
    screen, stop = _Screen(request), Stop()
    session = Session(request.configs, _reporter(request, screen))
    stream: Stream | None = None
    try:
        if request.target != STDIN and own.is_own(_existing(request.target)):
            own.fold_own(session, _own_history(request), tuple(request.lineage))
        else:
            request = _located(request)
            stream = _stream(request, session.idle, stop)
            with _interrupts(stop, live=request.live):
                _take(request, session, stream, screen)
        return _close(request, session, screen)
    except NothingFitsError as error:
        print_error(f"{request.name}: {error}")
        for line in words.head_lines(error.head):
            print(shown(line), file=sys.stderr)  # noqa: T201  for people
        return NOTHING_FITS
    except (LogError, OSError) as error:
        print_error(f"{request.name}: {_said(error)}")
        return BAD_INPUT
    finally:
        if request.target == STDIN and stream is not None:
            stop.asked = False
            _drain(stream)


@contextmanager
def _interrupts(stop: Stop, *, live: bool) -> Iterator[None]:
    """While a live log is read, the first interrupt is its end; what has come is still read."""
    if not live:
        yield
        return

    def interrupted(_number: int, _frame: object) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _take(request: Request, session: Session, stream: Stream, screen: _Screen) -> None:
    """The whole log."""
    columns = Columns(request.columns)
    if stream.path is not None and stream.path.is_dir():
        log = _events_of(stream.path, columns)
    else:
        log = open_log(stream, columns, live=request.live)
    if request.live and not request.as_json:
        screen.lines(words.opening_lines(request.name, log.format, log.columns))
    session.take(log)


def _close(request: Request, session: Session, screen: _Screen) -> int:
    if request.as_json:
        document = words.document(request.name, session)
        screen.lines([_as_json(document, indent=None if request.live else 1)])
    else:
        if not request.live:
            screen.lines(words.opening_lines(request.name, session.format, session.columns))
        screen.lines(words.closing_lines(session, list_events=not request.live))
        if len(request.configs) > 1:
            screen.lines(words.comparison_lines(session))
    if request.plot is not None:
        try:
            write_plot(session, request.name, request.plot)
        except (PlotError, OSError) as error:
            print_error(f"--plot {request.plot}: {_said(error)}")
            return BAD_INPUT
        if not request.as_json:
            screen.lines([f"plot: {request.plot}"])
    return 0


def _own_history(request: Request) -> own.History:
    """Raises LogError, OSError."""
    if request.follow:
        raise LogError("is a Forkcast run, which reports events itself", _STATUS)
    return own.read_own(Path(request.target))


def _said(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _reporter(request: Request, screen: _Screen) -> Callable[[LoggedRun, LogEvent], None]:
    """Events as they come, of a log that is still being written."""

    def report(run: LoggedRun, event: LogEvent) -> None:
        if not request.live:
            return
        if request.as_json:
            found = {"run": run.name, **words.event_document(event)}
            screen.lines([_as_json({"event": found}, indent=None)])
        else:
            screen.lines([words.event_line(event)])

    return report


def _as_json(document: Any, indent: int | None) -> str:
    return json.dumps(document, indent=indent, sort_keys=True)


def _existing(target: str) -> Path:
    """The path of a log. Raises LogError."""
    path = Path(target)
    if not path.exists():
        raise LogError("does not exist", "give a log, a folder of one, or - for standard input")
    if not path.is_dir() and not path.is_file():
        raise LogError("is no ordinary file", "give a log, or pipe it into: forkcast detect -")
    return path


def _stream(request: Request, on_idle: Callable[[], None], stop: Stop) -> Stream:
    if request.target == STDIN:
        tee = sys.stdout.buffer if request.tee else None
        return Stream(pipe_source(sys.stdin.buffer, on_idle, stop, tee), request.name)
    path = Path(request.target)
    if path.is_dir():
        return Stream(lambda: b"", request.name, path)
    if request.follow:
        return Stream(growing_source(path, on_idle, stop), request.name)
    return Stream(file_source(path), request.name, path)


def _located(request: Request) -> Request:
    """The same of the log that a folder holds. Raises LogError."""
    if request.target == STDIN or not (path := _existing(request.target)).is_dir():
        return request
    return replace(request, target=str(_in_folder(path)))


def _in_folder(folder: Path) -> Path:
    """The log in a folder; the folder itself if it is TensorBoard's. Raises LogError."""
    if any(folder.glob(_EVENT_FILES)):
        return folder
    for depth in range(_DEEPEST):
        for pattern in (*_IN_FOLDERS, _EVENT_FILES):
            found = sorted(folder.glob("*/" * depth + pattern))
            # the event files of a folder are one log, and so is what a trainer saved again and again
            logs = list(dict.fromkeys(p.parent if pattern == _EVENT_FILES else p for p in found))
            if logs and all(_CHECKPOINT.search(str(path.parent)) for path in logs):
                return max(logs, key=_saved_at)
            if len(logs) > 1:
                names = ", ".join(str(path.relative_to(folder)) for path in logs[:_MOST_NAMED])
                more = ", ..." if len(logs) > _MOST_NAMED else ""
                raise LogError(f"holds several logs: {names}{more}", "give one of them")
            if logs:
                return logs[0]
    raise LogError("is a folder without a log that is known", "give the log's own path")


def _saved_at(path: Path) -> int:
    found = _CHECKPOINT.search(str(path.parent))
    return int(found[1]) if found else 0


def _events_of(folder: Path, columns: Columns) -> Log:
    """All event files of a folder, one after another: a resumed run writes another one."""
    paths = sorted(folder.glob(_EVENT_FILES))
    streams = [Stream(file_source(path), path.name, path) for path in paths]
    rows = chain.from_iterable(map(tensorboard.FORMAT.rows, streams))
    name = (
        f"{tensorboard.FORMAT.name}, {len(paths)} files"
        if len(paths) > 1
        else tensorboard.FORMAT.name
    )
    return Log(name, "", columns, rows, streams[-1])


def _drain(stream: Stream) -> None:
    """Read to the end, so that the program that prints is not killed by a closed pipe."""
    with suppress(OSError, ValueError, KeyboardInterrupt):
        for _ in stream.chunks():
            pass
