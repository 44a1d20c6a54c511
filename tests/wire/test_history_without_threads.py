"""Reading a store's history leaves no thread of Arrow's behind: one that lets go of a file of Python's
while the interpreter ends aborts the process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
from forkcast_wire import history
from forkcast_wire.statistics import stats_row
from tests.make import step_stats

data = history.encoded([stats_row(step_stats(n)) for n in range(1024)])
before = len(os.listdir("/proc/self/task"))
assert len(history.decoded(data, "key")) == 1024
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_a_chunk_is_read_on_the_thread_that_asks_for_it():
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
