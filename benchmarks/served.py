"""The project's services and a baseline server as child processes on Unix sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
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


class Served:
    """One server process in a folder of its own; stop it, stall it, kill it."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        """Returns when the server answers. Raises grpc.FutureTimeoutError."""
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
        with open_channel(self.target) as channel:
            grpc.channel_ready_future(channel).result(timeout=_START_SECONDS)
        return process

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
