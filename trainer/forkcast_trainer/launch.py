"""`python -m forkcast_trainer.launch`: torchrun, with its arguments, as the first process of a pod.

torchrun alone hears SIGTERM only once its ranks run, which is seconds after its start, and a second
one makes it leave its ranks behind. Here the first ends what has no ranks yet, or goes on to them: they
save and leave together, and torchrun ends after them, with 0 if they did. Later ones change nothing.
If a rank hangs all are killed, and torchrun ends with 1.
"""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import os
import signal
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import structlog
from torch.distributed import run

from forkcast_wire import beats, hang
from forkcast_wire.process import configure_logging


def main() -> int:
    """0: every rank has left with 0. Raises what torchrun raises if one has not."""
    configure_logging("trainer")
    told = False

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            return
        told = True
        ranks = _children()
        if not ranks:
            os._exit(128 + number)
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    with _beats_folder() as folder:
        if folder is not None:
            os.environ[beats.FOLDER_VARIABLE] = folder
            hang.watch_children(Path(folder), _children)
        run.main(["--signals_to_handle", "SIGQUIT", *sys.argv[1:]])
    return 0


def _beats_folder() -> AbstractContextManager[str | None]:
    """The folder that the supervisor names, or one of our own; None if the disk has no room for it:
    then the ranks train unwatched.
    """
    if given := os.environ.get(beats.FOLDER_VARIABLE):
        return nullcontext(given)
    try:
        return tempfile.TemporaryDirectory(prefix="forkcast-beats-")
    except OSError as error:
        structlog.get_logger().warning("trainer.not_watched", error=str(error))
        return nullcontext(None)


def _children() -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent ...: the name may hold anything
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.append(int(status.parent.name))
    return found


if __name__ == "__main__":
    termination.leave(main())
