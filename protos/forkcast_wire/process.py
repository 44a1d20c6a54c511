"""What every process of Forkcast does at its start: logs, and not outliving its parent."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

_PR_SET_PDEATHSIG = 1
_TURN_SECONDS = 0.1
_LOOK_SECONDS = 0.5


class Lossy(io.TextIOBase):
    """A text stream whose lines may be lost: a full disk, or a reader that has gone, ends nobody's
    work.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return self._stream.encoding

    def write(self, text: str, /) -> int:
        """Write, or lose the text."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or keep it for the next time."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """The stream's."""
        return self._stream.isatty()


def configure_logging(component: str) -> None:
    """JSON lines on stderr, one event a line, with the component's name; control characters come
    out escaped, so that no message can forge a line. Warnings of libraries come out the same way.
    From here on a line that cannot be written, on stdout or stderr, is lost.
    """
    sys.stdout, sys.stderr = Lossy(sys.stdout), Lossy(sys.stderr)
    os.environ.setdefault("FORKCAST_COMPONENT", component)
    stamp: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer()  # ASCII only: every control character is escaped
    structlog.configure(
        processors=[*stamp, render],
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", sys.stderr)),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[libraries], level=logging.WARNING, force=True)
    structlog.contextvars.bind_contextvars(component=component)


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have: each connection takes one, and the
    usual soft limit of 1,024 is for programs that call select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS gives no such number
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (Linux; elsewhere nothing).

    The parent may have died before the request: then the process has been re-parented, which shows
    against FORKCAST_PARENT, the supervisor's process id, and it leaves at once. The kernel means
    the parent's *thread*: a child must be started from one that lives as long as the process.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.environ.get("FORKCAST_PARENT")
    if parent is not None and os.getppid() != int(parent):
        sys.exit(143)


def stop_when_orphaned(stop: threading.Event, leave_seconds: float) -> None:
    """Set ``stop`` within a second of the death of the parent or of the supervisor, and end the
    process where it has not left ``leave_seconds`` later.

    For a process whose parent is a launcher (torchrun), which neither minds the supervisor's death
    nor takes its children with it.
    """
    parent, supervisor = os.getppid(), os.environ.get("FORKCAST_PARENT")

    def orphaned() -> bool:
        return os.getppid() != parent or (supervisor is not None and _dead(int(supervisor)))

    def watch() -> None:
        while not orphaned():
            time.sleep(_LOOK_SECONDS)
        stop.set()
        time.sleep(leave_seconds)
        os._exit(1)  # stuck, perhaps waiting for another rank that is gone

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def alone(lock: Path, stop: threading.Event) -> bool:
    """Wait until no other process holds the lock file, and hold it while this one lives.

    Where `forkcast run` is killed and started again at once, the former children are still leaving:
    two monitors must not write one history, nor two operators give one trigger its verdict. False
    where ``stop`` is set before it is this one's turn.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    while not stop.is_set():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop.wait(_TURN_SECONDS)
        else:
            return True  # the kernel frees it, however this process ends
    os.close(descriptor)
    return False
