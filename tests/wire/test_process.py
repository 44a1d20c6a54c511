"""What every process does at its start, tried on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from forkcast_wire import process
from tests.waiting import running, until

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")

_CHILD = """
import os, pathlib, sys
from forkcast_wire.process import die_with_parent
from forkcast_wire.termination import stop_event_on_sigterm
stop = stop_event_on_sigterm()
die_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
stop.wait(600)
pathlib.Path(sys.argv[1] + ".stopped").write_text("cleanly" if stop.is_set() else "time is up")
"""
_HOLDER = """
import pathlib, sys, time
from forkcast_wire.process import alone
from forkcast_wire.termination import stop_event_on_sigterm
assert alone(pathlib.Path(sys.argv[1]), stop_event_on_sigterm())
pathlib.Path(sys.argv[2]).write_text("held")
time.sleep(600)
"""
_PARENT = """
import os, subprocess, sys, time
environment = {**os.environ, "FORKCAST_PARENT": str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env=environment)
time.sleep(600)
"""


def filled(path: Path) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_text() != ""


@linux
def test_a_child_stops_cleanly_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid, stopped = tmp_path / "pid", tmp_path / "pid.stopped"
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD, str(pid)])
    try:
        until(filled(pid), "the child's start")
    finally:
        parent.kill()
        parent.wait()
    until(filled(stopped), "the child's end")
    assert stopped.read_text() == "cleanly"


@linux
def test_a_child_whose_parent_died_before_it_could_ask_leaves_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "pid")],
        env={**os.environ, "FORKCAST_PARENT": str(gone.pid)},
        check=False,
    )
    assert done.returncode == 143
    assert not (tmp_path / "pid").exists()


_RANK = """
import os, pathlib, sys, threading
from forkcast_wire.process import stop_when_orphaned
stop = threading.Event()
stop_when_orphaned(stop, leave_seconds=float(sys.argv[2]))
path = pathlib.Path(sys.argv[1])
path.write_text(f"{os.getpid()} {os.getppid()}")
stop.wait(600)
path.with_suffix(".stopped").write_text("cleanly" if stop.is_set() else "time is up")
if sys.argv[2] == "1":
    threading.Event().wait()  # stuck, as in a collective whose other ranks are gone
"""
_LAUNCHER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
"""


@linux
@pytest.mark.parametrize("dies", ["launcher", "supervisor"])
@pytest.mark.parametrize("leave_seconds", ["3600", "1"], ids=["leaves", "is stuck"])
def test_a_rank_leaves_when_its_launcher_or_supervisor_is_killed(
    tmp_path: Path, dies: str, leave_seconds: str
) -> None:
    """A launcher that is killed takes no child with it, and does not mind its own parent's death."""
    path = tmp_path / "pid"
    supervisor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, _RANK, str(path), leave_seconds],
        env={**os.environ, "FORKCAST_PARENT": str(supervisor.pid)},
    )
    try:
        until(filled(path), "the rank's start")
        rank = int(path.read_text().split()[0])
        victim = launcher if dies == "launcher" else supervisor
        victim.kill()
        victim.wait()
        until(lambda: not running(rank), "the rank's end")
        if leave_seconds == "3600":
            assert path.with_suffix(".stopped").read_text() == "cleanly"
    finally:
        for one in (launcher, supervisor):
            one.kill()
            one.wait()


def test_logs_are_json_lines_that_no_message_can_forge() -> None:
    program = """
import logging, structlog
from forkcast_wire.process import configure_logging
configure_logging("tester")
structlog.get_logger().info("a.b", text='x\\n{"event": "forged"}\\x1b[31m\\x00\\x7f\\x9b\\u2028')
logging.getLogger("library").warning("first\\nsecond %s", "\\x1b]0;title\\x07")
logging.getLogger("library").info("not shown")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("a.failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b""
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in done.stderr)
    ours, theirs, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert ours["event"] == "a.b"
    assert ours["component"] == theirs["component"] == failed["component"] == "tester"
    assert (ours["level"], theirs["level"], failed["level"]) == ("info", "warning", "error")
    assert theirs["event"].startswith("first\nsecond")
    assert theirs["logger"] == "library"
    assert "ZeroDivisionError" in failed["exception"]
    assert {"timestamp"} <= ours.keys() & theirs.keys() & failed.keys()


def test_a_line_that_cannot_be_written_ends_nothing() -> None:
    """Regression: one log line on a full disk ended the training."""
    program = """
import logging, sys, warnings, structlog
from forkcast_wire.process import configure_logging
configure_logging("tester")
for number in range(5000):
    structlog.get_logger().info("a.b", number=number)
logging.getLogger("library").warning("said by a library")
warnings.warn("and by Python")
print("said")
print("and said", file=sys.stderr)
sys.exit(7)
"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=full, check=False
        )
    assert done.returncode == 7


def test_a_part_waits_until_its_predecessor_has_gone(tmp_path: Path) -> None:
    lock, held = tmp_path / "lock", tmp_path / "held"
    former = subprocess.Popen([sys.executable, "-c", _HOLDER, str(lock), str(held)])
    stop, turns = threading.Event(), []
    waiting = threading.Thread(target=lambda: turns.append(process.alone(lock, stop)))
    try:
        until(filled(held), "the former one's lock")
        never = threading.Event()
        never.set()
        assert not process.alone(lock, never)
        waiting.start()
        assert turns == []
    finally:
        former.kill()
        former.wait()
    waiting.join()
    assert turns == [True]
