"""The project's services and a baseline server as child processes on Unix sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from forkcast_wire.channel import open_channel
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import load_manifest

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
UID = "benchmark"
_START_SECONDS = 180.0
_LOOK_SECONDS = 0.5


class Served:
    """One server process in a folder of its own; stop it, stall it, kill it."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        """Returns when the server answers. Raises RuntimeError where it does not start."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._command = folder, command
        self.target = f"unix:{folder}/s"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self._command, "--listen", "unix:s"],
                cwd=self.folder,
                stderr=log,
                env={**os.environ, "FORKCAST_PARENT": str(os.getpid())},
            )
        deadline = time.monotonic() + _START_SECONDS
        with open_channel(self.target) as channel:
            ready = grpc.channel_ready_future(channel)
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(grpc.FutureTimeoutError):
                    ready.result(timeout=_LOOK_SECONDS)
                    return process
        process.kill()
        process.wait()
        said = (self.folder / "log").read_text().strip().rpartition("\n")[2]
        raise RuntimeError(f"{' '.join(self._command)} did not start: {said}")

    def stall(self) -> None:
        """SIGSTOP: the connections stay open and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def revive(self) -> None:
        """Start it again where it was killed."""
        self.process = self._start()

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is not None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def folder() -> Iterator[Path]:
    """A short-lived folder; its path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="fkb-") as name:
        yield Path(name)


def monitor(place: Path, manifest: TrainingRun) -> Served:
    """A real monitor for one run."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "manifest.json").write_text(json.dumps(manifest.document()))
    (place / "run.json").write_bytes(dump(RunInfo(uid=UID, name="benchmark", manifest_digest="")))
    return Served(place, ["-m", "forkcast_monitor", "--manifest", "manifest.json"])


def quickstart() -> TrainingRun:
    """The quickstart's manifest."""
    return load_manifest(QUICKSTART)
