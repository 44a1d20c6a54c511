"""Every rank of a run of several processes leaves with exit code 0, whatever ends the run."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ends import WAYS, end


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends") / "complete"
    assert end("complete", folder, former=None, device="cpu", ranks=2) == [0, 0]
    return folder


@pytest.mark.parametrize("way", WAYS[1:])
def test_all_ranks_leave_with_0(tmp_path, former, way):
    assert end(way, tmp_path / way, former=former, device="cpu", ranks=2) == [0, 0]


def test_no_thread_of_the_group_is_left_when_the_interpreter_ends():
    """A thread of Gloo that releases a tensor at that time aborts the process, sometimes."""
    program = """
import os, pathlib, sys, torch
from forkcast_trainer import ranks
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
ranks.join()
weight = torch.nn.Parameter(torch.ones(1))
weight.grad = torch.ones(1)
torch.optim.AdamW([weight]).step()  # imports what keeps the group
torch.distributed.all_reduce(weight.grad)
names = lambda: {(task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()}
assert any("gloo" in name for name in names())
ranks.leave()
sys.exit(any("gloo" in name for name in names()))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
