"""States are encoded and uploaded by another process, out of memory that both share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import Encoding, Snapshot
from forkcast_trainer.saver import Saver
from forkcast_trainer.staging import BUFFERS, Staged, Staging
from forkcast_trainer.table import Role
from forkcast_trainer.uploading import UploadProcess, UploadProcessDiedError
from forkcast_wire import keys
from forkcast_wire.documents import saved_states
from forkcast_wire.manifest import Checkpoint, Storage
from forkcast_wire.store import FolderStore, StoreUnavailable
from tests.waiting import until

RING = StateKind.RING
CPU = torch.device("cpu")
ROLES = {"optimizer.w.exp_avg": Role.FIRST_MOMENT, "optimizer.w.exp_avg_sq": Role.SECOND_MOMENT}


def tensors(step):
    torch.manual_seed(step)
    return {
        "model.w": torch.randn(300, 7),
        "model.half": torch.randn(5).bfloat16(),
        "model.empty": torch.empty(0, 3),
        "optimizer.w.exp_avg": 1e-4 * torch.randn(300, 7),
        "optimizer.w.exp_avg_sq": 1e-6 + 1e-6 * torch.rand(300, 7),
        "optimizer.w.step": torch.tensor(float(step)),
        "buffer.mask": torch.tensor([True, False, True]),
        "rng.torch": torch.randint(0, 255, (11,), dtype=torch.uint8),
    }


def meta(step):
    return {"run_uid": "u", "epoch": 0, "attempt": 0, "step": step, "loss": 1.0}


def folder(step):
    return keys.state(RING, 0, 0, step)


@pytest.fixture
def process(tmp_path):
    made = UploadProcess(Storage(path=str(tmp_path / "store")), tmp_path)
    yield made
    made.close()


@pytest.fixture
def saver(tmp_path):
    """With a process of its own, on a folder."""
    store = FolderStore(tmp_path / "store")
    storage = Storage(path=str(tmp_path / "store"))
    made = Saver(store, tmp_path, Checkpoint(), staging=Staging(CPU), storage=storage)
    yield made
    assert made.close(60)


def save_until(saver, seen, what):
    """Save step after step until something is seen; returns the last step."""
    step = 0

    def one_more():
        nonlocal step
        step += 1
        saver.save(Snapshot(meta(step), saver.copied(tensors(step))), RING)
        assert saver.flush(60)
        assert saver.error == ""
        return seen()

    until(one_more, what)
    return step


def test_the_other_process_writes_the_same_bytes(tmp_path, process):
    here, staging = FolderStore(tmp_path / "here"), Staging(CPU)
    until(process.up, "the process")
    for step, int8 in ((10, False), (20, True)):
        staged = staging.copy(tensors(step))
        assert isinstance(staged, Staged)
        there = process.upload(
            Snapshot(meta(step), staged, ROLES), folder(step), RING, Encoding(1, int8)
        )
        plain = Snapshot(meta(step), tensors(step), ROLES)
        made = checkpoint.upload(here, plain, folder(step), RING, tmp_path, Encoding(1, int8))
        assert (there.ref, there.lossless) == (made.ref, not int8)
        store = FolderStore(tmp_path / "store")
        assert store.head(keys.ptz(folder(step), step)).etag == there.etag
        checkpoint.verify(store, there.ref, tmp_path, "u")
        staging.give_back(staged.buffer)


def test_what_goes_wrong_there_is_told_here(tmp_path):
    (tmp_path / "file").write_text("")
    process = UploadProcess(Storage(path=str(tmp_path / "file")), tmp_path)
    until(process.up, "the process")
    snapshot = Snapshot(meta(10), Staging(CPU).copy(tensors(10)))
    with pytest.raises(StoreUnavailable, match=r"Not a directory|File exists"):
        process.upload(snapshot, folder(10), RING, Encoding(1))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UploadProcessDiedError):
        process.upload(snapshot, folder(10), RING, Encoding(1))
    process.close()


def test_a_copy_is_what_was_there_whatever_comes_after():
    staging, live = Staging(CPU), tensors(1)
    staged = staging.copy(live)
    for one in live.values():
        one.zero_()
    for name, wanted in tensors(1).items():
        assert torch.equal(staged[name], wanted), name
        assert (staged[name].dtype, staged[name].shape) == (wanted.dtype, wanted.shape)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_device_the_copy_is_what_was_there_before_the_next_update():
    staging = Staging(torch.device("cuda"))
    weight = torch.randn(4096, 4096, device="cuda")
    before = weight.cpu()
    for _ in range(3):  # the second time into memory that is page-locked already
        busy = weight @ weight  # the copy comes after what the device still has to do
        staged = staging.copy({"model.w": weight, "busy": busy})
        assert staged["model.w"].is_pinned()
        staging.wait()
        weight.add_(1)
        staged.copied()
        assert torch.equal(staged["model.w"], before)
        assert torch.equal(staged["busy"], busy.cpu())
        before = weight.cpu()
        staging.give_back(staged.buffer)


def test_buffers_are_kept_and_used_again_and_there_are_two():
    staging = Staging(CPU)
    first = staging.copy(tensors(1))
    second = staging.copy(tensors(2))
    third = staging.copy(tensors(3))
    assert BUFFERS == 2
    assert isinstance(first, Staged)
    assert isinstance(second, Staged)
    assert not isinstance(third, Staged)  # of its own: a save is never refused for want of room
    assert torch.equal(third["model.w"], tensors(3)["model.w"])
    at = first["model.w"].data_ptr()
    staging.give_back(first.buffer)
    again = staging.copy(tensors(4))
    assert again["model.w"].data_ptr() == at
    size = second.buffer.size
    staging.give_back(second.buffer)
    larger = staging.copy({"model.w": torch.arange(10_000.0)})
    assert larger.buffer is second.buffer
    assert larger.buffer.size > size
    assert torch.equal(larger["model.w"], torch.arange(10_000.0))


def test_states_are_saved_by_the_other_process_as_soon_as_it_is_up(tmp_path, monkeypatch, saver):
    log = tmp_path / "points"
    monkeypatch.setenv("FORKCAST_CRASH_LOG", str(log))
    last = save_until(
        saver, lambda: log.exists() and "saver after-put:ring.cp" in log.read_text(), "a save"
    )
    store = FolderStore(tmp_path / "store")
    assert saver.newest_step(0) == last
    for ref in saved_states(store, RING):
        checkpoint.verify(store, ref, tmp_path / "check", "u")


@pytest.mark.parametrize("point", ["before-put:ring.cp", "after-put:ring.cp"])
def test_a_state_whose_process_is_killed_is_saved_all_the_same(
    tmp_path, monkeypatch, capfd, saver, point
):
    died = tmp_path / "died"
    monkeypatch.setenv("FORKCAST_CRASH", f"saver/{point}/1:{died}")
    last = save_until(saver, died.exists, "the process's death")
    store = FolderStore(tmp_path / "store")
    assert saver.newest_step(0) == last
    checkpoint.verify(store, saved_states(store, RING)[-1], tmp_path / "check", "u")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert "saver.process_died" in capfd.readouterr().out


def test_a_killed_trainer_leaves_no_process_behind(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from forkcast_trainer.uploading import UploadProcess\n"
        "from forkcast_wire.manifest import Storage\n"
        "made = UploadProcess(Storage(), Path(sys.argv[1]))\n"
        "while not made.up(): time.sleep(0.05)\n"
        "print(made.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    pid = int(trainer.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    until(lambda: _gone(pid), "the process's end")


def _gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
