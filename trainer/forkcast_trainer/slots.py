"""How many rollouts compute at once, over processes: a lock file for each slot."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.05


class Slots:
    """``count`` slots in a folder. The kernel frees a slot whose holder is killed."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / str(number) for number in range(count)]
        self._narrow = folder / "narrow"

    def narrow(self) -> None:
        """From now on one slot only, for every process: two do not fit into the device's memory."""
        self._narrow.touch()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one slot; waits for it."""
        while True:
            for path in self._paths[:1] if self._narrow.exists() else self._paths:
                with path.open("a") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    yield
                    return
            time.sleep(_POLL_SECONDS)
