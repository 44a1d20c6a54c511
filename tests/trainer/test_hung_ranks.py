"""A process that is stopped or stuck is named, killed, and the run goes on without anybody until it is complete."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from forkcast.records import StateKind
from forkcast_cli.supervisor import Supervisor
from forkcast_wire import beats, hang
from forkcast_wire.documents import saved_states
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.store import FolderStore
from tests.waiting import running, until

STEPS, RING, AT = 20, 5, 8


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """The file that lets the training thread go on after step AT."""
    file = tmp_path / "goes-on"
    monkeypatch.setenv("FORKCAST_WAIT", f"trainer/step/{AT}:{file}")
    return file


@pytest.fixture
def supervised(run_in, tmp_path):
    """A supervisor of nothing but the trainer."""
    made = []

    def make(**more):
        run = run_in(tmp_path / "run", steps=STEPS, ring=RING, **more)
        (run.folder / "logs").mkdir()
        document = run.manifest.document()
        document["spec"]["branching"] = {"mode": "Disabled"}
        spec = TrainingRun.model_validate(document).spec
        (run.folder / "manifest.json").write_text(json.dumps(document))
        made.append(Supervisor(spec, run.folder, complete_since=lambda _: True))
        return made[-1]

    yield make
    for one in made:
        for child in one.children.values():
            if child.process is not None:
                child.process.kill()  # ranks leave with their launcher
                child.process.wait()


def holds_step(supervisor, step):
    store = FolderStore(supervisor.folder)
    return any(ref.step == step for ref in saved_states(store, StateKind.RING))


def log_of(supervisor):
    path = supervisor.folder / "logs" / "trainer.log"
    return path.read_text() if path.exists() else ""


def events(text, name):
    lines = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("event") == name]


def looked(supervisor, condition):
    """The condition, after a pass of the supervisor."""

    def look():
        supervisor.look()
        return condition()

    return look


def goes_on_from(supervisor, step):
    """Whether the run is at its end, and a later start began at a state, not at the first step."""
    (last,) = events(log_of(supervisor), "train.start")[-1:]
    return supervisor.finished(0) and last["step"] >= step


def test_a_stopped_rank_is_named_and_the_run_goes_on_until_it_is_complete(supervised, waiting):
    supervisor = supervised(processes=2, hangSeconds=10)
    until(looked(supervisor, lambda: holds_step(supervisor, RING)), "a saved state")

    def stopped():
        """The process of rank 1; another one where the wait was taken for a hang before."""
        pids = [one.pid for one in beats.read(supervisor.folder / "beats") if one.rank == 1]
        with suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGSTOP)
            return pids[0]

    pid = until(looked(supervisor, stopped), "rank 1")
    waiting.touch()
    until(looked(supervisor, lambda: supervisor.finished(0)), "the end of the run")
    (hung,) = [one for one in events(log_of(supervisor), "trainer.hung") if one["pid"] == pid]
    assert (hung["rank"], hung["stopped"]) == (1, True)
    assert not running(pid)
    assert goes_on_from(supervisor, RING)


def test_a_stuck_training_thread_is_named_with_its_stack_and_the_run_goes_on(
    supervised, waiting, tmp_path, monkeypatch
):
    """Its helper threads live on: the states are saved while it is stuck. The supervisor's clock
    stands until then, and afterwards: how long a start takes says nothing here.
    """
    reached, now = tmp_path / "reached", 0.0
    monkeypatch.setenv("FORKCAST_CRASH_LOG", str(reached))
    monkeypatch.setattr(hang, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    supervisor = supervised(hangSeconds=100)

    def stuck():
        return reached.exists() and f"trainer step {AT}\n" in reached.read_text()

    with capture_logs() as logs:

        def named():
            nonlocal now
            now += 1
            return [one for one in logs if one["event"] == "trainer.hung"]

        until(looked(supervisor, stuck), "the step that waits")
        until(looked(supervisor, lambda: holds_step(supervisor, RING)), "a saved state")
        until(looked(supervisor, named), "the alarm")
        waiting.touch()
        until(looked(supervisor, lambda: supervisor.finished(0)), "the end of the run")
    (hung,) = named()
    assert (hung["rank"], hung["step"], hung["phase"]) == (0, AT - 1, "step")
    assert "in reach" in log_of(supervisor)  # of FORKCAST_WAIT, where it was stuck
    assert goes_on_from(supervisor, RING)


#: A trainer whose watch of itself has a clock that stands until the training thread waits.
_ON_A_CLOCK = """
import os, runpy, time
from pathlib import Path
from types import SimpleNamespace
from forkcast_wire import hang
now = 0
def monotonic():
    global now
    reached = Path(os.environ["FORKCAST_CRASH_LOG"])
    now += 5 * (reached.exists() and os.environ["REACHED"] in reached.read_text())
    return now
hang.time = SimpleNamespace(monotonic=monotonic, sleep=lambda _: time.sleep(0.05))
runpy.run_module("forkcast_trainer", run_name="__main__")
"""


def test_a_lone_process_that_nobody_watches_ends_itself_so_that_it_is_started_again(
    new_run, waiting, tmp_path, capfd
):
    run = new_run(steps=STEPS, hangSeconds=100)
    reached = {"FORKCAST_CRASH_LOG": str(tmp_path / "reached"), "REACHED": f"trainer step {AT}\n"}
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_A_CLOCK, "--manifest", "manifest.json"],
        cwd=run.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **reached},
    )
    try:
        assert process.wait() == 1
    finally:
        process.kill()
    said = capfd.readouterr().err
    (hung,) = events(said, "trainer.hung")
    assert (hung["rank"], hung["phase"]) == (0, "step")
    assert "in reach" in said
    assert not waiting.exists()
