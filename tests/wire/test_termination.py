"""SIGTERM, tried on every process that is started in a container or by `forkcast run`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.termination import Stop
from tests.make import little_text, tiny_run
from tests.waiting import until

MODULES = (
    "forkcast_monitor",
    "forkcast_proxy",
    "forkcast_operator",
    "forkcast_operator.kubernetes",
    "forkcast_operator.uninstall",
    "forkcast_trainer",
    "forkcast_trainer.launch",
    "forkcast_trainer.rollout_server",
    "forkcast_trainer.rollout_job",
)
#: Sends SIGTERM to its process when that imports the first package which is neither Python's nor ours.
_AT_THE_FIRST_IMPORT = """
import os, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and not top.startswith("forkcast"):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Hook())
"""
MANIFEST = tiny_run(
    "t",
    data=little_text(16, maxBatches=1),
    optimizer={"learningRate": "1e-3"},
    training={"totalSteps": 10**8, "microBatchSize": 2},
)


@pytest.mark.parametrize("module", MODULES)
def test_sigterm_is_heard_before_the_first_slow_import(tmp_path: Path, module: str) -> None:
    """By a handler: PID 1 of a container has no default action, the signal would be lost."""
    (tmp_path / "sitecustomize.py").write_text(_AT_THE_FIRST_IMPORT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, b"")


def logged(event: str) -> Callable[[Path], bool]:
    return lambda folder: f'"{event}"' in (folder / "log").read_text()


def trained(folder: Path) -> bool:
    path = folder / "progress.json"
    return path.exists() and json.loads(path.read_text())["step"] > 0


#: The command's arguments, and when the process is at work.
LOCAL = {
    "monitor": (
        ["forkcast_monitor", "--manifest", "manifest.json", "--listen", "unix:m"],
        logged("service.serving"),
    ),
    "proxy": (["forkcast_proxy", "--listen", "unix:p"], logged("service.serving")),
    "operator": (
        ["forkcast_operator", "--manifest", "manifest.json", "--monitor", "unix:m"],
        lambda folder: (folder / "operator.lock").exists(),
    ),
    "rollouts": (
        ["forkcast_trainer.rollout_server", "--manifest", "manifest.json"],
        logged("rollouts.serving"),
    ),
    "trainer": (["forkcast_trainer", "--manifest", "manifest.json"], trained),
    "ranks": (
        [
            "forkcast_trainer.launch",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "--",
            "forkcast_trainer",
            "--manifest",
            "manifest.json",
        ],
        trained,
    ),
}


@contextmanager
def at_work(folder: Path, part: str) -> Iterator[subprocess.Popen[bytes]]:
    manifest = TrainingRun.model_validate(MANIFEST)
    (folder / "manifest.json").write_text(json.dumps(manifest.document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    arguments, works = LOCAL[part]
    environment = {k: v for k, v in os.environ.items() if k != "FORKCAST_PARENT"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            stderr=log,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    try:
        until(lambda: works(folder) or process.poll() is not None, f"{part} at work")
        assert process.poll() is None, (folder / "log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("part", "number"),
    [*((part, signal.SIGTERM) for part in LOCAL), ("monitor", signal.SIGINT)],
)
def test_a_signal_that_comes_again_and_again_does_not_kill_what_drains(
    tmp_path: Path, part: str, number: signal.Signals
) -> None:
    """To the very end: also while the event loop and the interpreter end."""
    with at_work(tmp_path, part) as process:

        def ended() -> bool:
            process.send_signal(number)
            return process.poll() is not None

        until(ended, "its end", every=0.001)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    if part in ("trainer", "ranks"):
        assert json.loads((tmp_path / "progress.json").read_text())["state"] == "stopped"
        assert list((tmp_path / "checkpoints").iterdir())


def test_a_stop_wakes_what_waits_and_a_loop_that_reads_it() -> None:
    stop = Stop()
    assert not stop.wait(0)
    assert not stop.is_set()
    waiting = threading.Thread(target=stop.wait)
    waiting.start()

    async def read() -> None:
        seen = asyncio.Event()
        asyncio.get_running_loop().add_reader(stop.fileno(), seen.set)
        stop.set()
        await seen.wait()

    asyncio.run(read())
    waiting.join()
    stop.set()  # again: nothing happens
    assert stop.is_set()
    assert stop.wait()


def test_a_stop_may_be_set_by_a_handler_that_interrupts_its_own_wait() -> None:
    """With the event of `threading` this hangs as soon as a signal falls into its lock."""
    program = """
import signal
from forkcast_wire.termination import Stop
for _ in range(300):
    stop = Stop()
    signal.signal(signal.SIGALRM, lambda *_: stop.set())
    signal.setitimer(signal.ITIMER_REAL, 2e-5)
    while not stop.wait(0):
        pass
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
