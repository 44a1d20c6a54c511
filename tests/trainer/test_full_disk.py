"""A disk that is full takes log lines, progress and saves; the training goes on."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from forkcast_wire.completion import completion
from forkcast_wire.store import FolderStore
from tests.waiting import until


def test_a_training_whose_log_cannot_be_written_goes_to_its_end(new_run):
    """Regression: `python -m forkcast_trainer ... 2>/dev/full` ended at its first line."""
    run = new_run(steps=20)
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=run.folder, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert completion(FolderStore(run.folder), 20).step == 20


def test_progress_that_cannot_be_written_ends_nothing(new_run):
    run = new_run(steps=20)
    (run.folder / "progress.json").mkdir()  # no file can take its place
    assert run.start().wait() == 0
    assert completion(FolderStore(run.folder), 20).step == 20


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    """Every block that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 14))


def test_on_a_full_disk_the_training_goes_on_and_saves_once_there_is_room(
    run_in, small_disk, tmp_path
):
    run = run_in(small_disk / "w", steps=10**6, every=10)
    log, filler = tmp_path / "log", small_disk / "filler"
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=run.folder, stderr=said)

    def count(event):
        return log.read_bytes().count(event)

    try:
        until(lambda: count(b"saver.saved") > 1, "a save")
        fill(filler)
        until(lambda: count(b"saver.failed") > 1, "a second save that fails")
        assert process.poll() is None
        filler.unlink()
        before = count(b"saver.saved")
        until(lambda: count(b"saver.saved") > before, "a save once there is room")
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
    assert b"No space left on device" in log.read_bytes()
