"""The monitor that is started beside a watched training, and ends with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from forkcast_watch.tolerance import log
from forkcast_wire.run_folder import REGISTRATION

_BACKOFF = (0.5, 2.0, 10.0, 60.0)
#: Of a monitor that is asked to leave; what it has not closed into Parquet by then is in its tail.
_GRACE_SECONDS = 5.0


class MonitorProcess:
    """One child process; started again if it dies. Its socket is in a folder that only the user can
    enter, with a short name: a path of a socket has at most 107 characters.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sockets = Path(tempfile.mkdtemp(prefix="forkcast-"))
        self.target = f"unix:{self._sockets / 'monitor.sock'}"
        self.process: subprocess.Popen[bytes] | None = None
        self._deaths, self._not_before = 0, 0.0

    def look(self) -> None:
        """Start it if it does not run. Whatever this machine refuses is tried again later."""
        if self.process is not None and self.process.poll() is not None:
            code, self.process = self.process.returncode, None
            wait = _BACKOFF[min(self._deaths, len(_BACKOFF) - 1)]
            self._deaths += 1
            self._not_before = time.monotonic() + wait
            log.info("the monitor ended with %s; it is started again", code)
        if self.process is None and time.monotonic() >= self._not_before:
            try:
                self._start()
            except OSError as error:
                self._not_before = time.monotonic() + _BACKOFF[-1]
                log.warning("the monitor cannot be started: %s; training goes on", error)

    def _start(self) -> None:
        command = [sys.executable, "-m", "forkcast_monitor", "--registration", REGISTRATION]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        parent = {"FORKCAST_PARENT": str(os.getpid()), "FORKCAST_COMPONENT": "monitor"}
        # it computes little, and must take neither the training's cores nor its GPU
        alone = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self._folder / "logs" / "monitor.log").open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603  our own module
                [*command, "--listen", self.target],
                cwd=self._folder,
                env={**os.environ, **threads, **parent, **alone},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def hopeless(self) -> bool:
        """Whether it has died so often that another start will hardly help."""
        return self._deaths >= len(_BACKOFF)

    def close(self) -> None:
        """End it, and wait until it has."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)
