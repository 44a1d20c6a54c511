"""A disk that is full takes log lines, progress and saves; the training goes on."""

import subprocess
import sys
from pathlib import Path

from forkcast_wire.completion import completion
from forkcast_wire.store import FolderStore


def test_a_training_whose_log_cannot_be_written_goes_to_its_end(new_run):
    """Regression: `python -m forkcast_trainer ... 2>/dev/full` ended at its first line."""
    run = new_run(steps=20)
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=run.folder, stdout=full, stderr=full, timeout=300, check=False
        )
    assert done.returncode == 0
    assert completion(FolderStore(run.folder), 20).step == 20


def test_progress_that_cannot_be_written_ends_nothing(new_run):
    run = new_run(steps=20)
    (run.folder / "progress.json").mkdir()  # no file can take its place
    assert run.start().wait(300) == 0
    assert completion(FolderStore(run.folder), 20).step == 20
