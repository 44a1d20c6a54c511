"""What the commands write on a terminal: stored and foreign text is shown, never obeyed."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

#: sysexits' EX_SOFTWARE: a fault of ours.
UNEXPECTED = 70
_UNWRITABLE = 1
#: Columns of what is no terminal: more than any line of ours has.
_UNBROKEN = 2000
#: What a disk says that is full, over quota, read-only or broken.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_USERINFO = re.compile(r"(://)[^/@\s]+@")


def shown(text: str) -> str:
    """The text without control characters (line ends stay) and without passwords of URLs."""
    return _USERINFO.sub(r"\1***@", _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def print_error(error: object) -> None:
    """On stderr; a line for each of the message's."""
    print(f"error: {shown(str(error))}", file=sys.stderr)  # noqa: T201  for people


def print_notice(text: str) -> None:
    """What a command did beside what was asked, on stderr."""
    print(shown(text), file=sys.stderr)  # noqa: T201  for people


class _Plain(Console):
    """A console that takes no text for markup and passes no foreign control character on."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)


def console(*, quiet: bool = False) -> Console:
    """For everything that the commands print in colour. What goes into a file or a pipe is not broken
    into the lines of a terminal that is not there, unless COLUMNS asks for it.
    """
    there = sys.stdout.isatty() or "COLUMNS" in os.environ
    return _Plain(
        quiet=quiet,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if there else _UNBROKEN,
    )


def carry_out(command: Callable[[], None], name: str) -> None:
    """Run a command as a process: whatever it did not expect is one line, an exit code, and a
    traceback in a file. Leaves by SystemExit.
    """
    try:
        command()
    except SystemExit as end:
        _leave(end)
    except BrokenPipeError:
        _discard_output()
        sys.exit(_UNWRITABLE)
    except Exception as error:  # noqa: BLE001  the last handler there is
        if isinstance(error, OSError) and error.errno in _DISK:
            print_error(_refused(error))
            _discard_output()
            sys.exit(_UNWRITABLE)
        print_error(_unexpected(error, name))
        sys.exit(UNEXPECTED)


def _leave(end: SystemExit) -> None:
    """Flush what was printed; the interpreter's own flush would end in a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print_error(_refused(error))
        _discard_output()
        sys.exit(end.code or _UNWRITABLE)
    raise end


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(error: OSError) -> str:
    return f"{error.filename or 'output'}: {error.strerror}"


def _unexpected(error: Exception, name: str) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        what = _refused(error)
    else:
        what = f"unexpected {type(error).__name__}: {error}"
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"{name}-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{what} (the traceback could not be written)"
    return f"{what} (traceback in {path})"
