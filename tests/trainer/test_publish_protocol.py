"""A saved state exists whole or not at all: killed at every write, and in a store that lies."""

import os
import secrets
import shutil
import signal
import sys

import pytest
import torch

from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import Snapshot
from forkcast_trainer.saver import GOOD_AFTER_STEPS, Saver
from forkcast_wire import catalogue, keys
from forkcast_wire.documents import saved_states
from forkcast_wire.manifest import Checkpoint, Storage
from forkcast_wire.store import FolderStore, StoreUnavailable
from forkcast_wire.store.s3 import S3Store

RING = StateKind.RING
_WRITES = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_DAYS = 2 * catalogue.ORPHAN_SECONDS


def snapshot(step):
    meta = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": step, "loss": 1.0}
    return Snapshot(meta, {"model.w": torch.full((64,), float(step))})


def publish(store, step, scratch):
    folder = keys.state(RING, 0, 0, step)
    return checkpoint.publish(store, snapshot(step), folder, RING, scratch, 0)


def the_work(root):
    """Restore the newest state, save the next one, mark the last one good, prune."""
    store, scratch = FolderStore(root), root / "scratch"
    checkpoint.sweep(scratch)
    checkpoint.fetch(store, saved_states(store, RING)[-1], scratch, "u")
    ref = publish(store, 40, scratch)
    if store.head(f"{ref.key}/good") is None:
        store.put(f"{ref.key}/good", b"", create=True)
    catalogue.prune(store, RING, keep_last=1, pinned_steps=())
    checkpoint.fetch(store, ref, scratch, "u")


def killed_before_write(number, root):
    """Whether the work, in a process of its own, was killed before its write of this number; False if
    it has fewer.
    """
    child = os.fork()
    if child == 0:
        left = number

        def hook(event, args):
            nonlocal left
            writes = event in _WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
            if writes and str(args[0]).startswith(str(root)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            the_work(root)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def names(root):
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def newest(root):
    """When the last of a folder's files was written, in seconds as `time.time` gives them."""
    return max(path.stat().st_mtime for path in root.rglob("*") if path.is_file())


def two_days_later(root):
    """What is swept of a folder, its temporary files included."""
    now = newest(root)
    for path in (root / ".forkcast").iterdir():
        os.utime(path, (now - _DAYS,) * 2)
    catalogue.sweep(FolderStore(root), now + _DAYS)


@pytest.fixture
def four_states(tmp_path):
    root = tmp_path / "four"
    store = FolderStore(root)
    for step in (0, 10, 20, 30):
        publish(store, step, root / "scratch")
    catalogue.pin(store, "a branch", [keys.state(RING, 0, 0, 10)])
    return root


def test_a_kill_at_any_write_of_save_prune_and_restore_leaves_whole_states_only(
    four_states, tmp_path
):
    whole = tmp_path / "whole"
    shutil.copytree(four_states, whole)
    the_work(whole)
    number = 0
    while True:
        number += 1
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(four_states, root)
        if not killed_before_write(number, root):
            break
        store = FolderStore(root)
        states = saved_states(store, RING)
        for ref in states:
            checkpoint.verify(store, ref, root / "check", "u")
        assert {10} < {ref.step for ref in states}  # the pinned one, and one to go on from
        assert max(ref.step for ref in states) >= 30
        (root / "check").rmdir()
        the_work(root)  # the next attempt
        two_days_later(root)
        assert names(root) == names(whole), number
    assert number > 50


def test_a_part_without_a_manifest_goes_when_it_is_old_and_not_before(four_states):
    store, folder = FolderStore(four_states), keys.state(RING, 0, 0, 20)
    store.delete(keys.state_manifest(folder))  # as a killed deletion leaves it
    rollout = keys.rollout_state("e0-t30", "c001", 40)
    store.put(keys.state_history(rollout), b"rows")
    before = names(four_states)
    now = newest(four_states)
    assert catalogue.sweep(store, now) == []
    assert names(four_states) == before
    assert catalogue.sweep(store, now + _DAYS) == [folder, rollout]
    assert before - names(four_states) == {keys.ptz(folder, 20), keys.state_history(rollout)}


@pytest.fixture
def bucket(gateway, tmp_path):
    credentials = tmp_path / "keys"
    credentials.mkdir()
    (credentials / "accessKeyId").write_text("k")
    (credentials / "secretAccessKey").write_text("s")
    section = {
        "endpoint": gateway.endpoint,
        "bucket": "runs",
        "prefix": f"p{secrets.token_hex(6)}/",
        "credentialsDir": str(credentials),
    }
    return S3Store.connect(Storage.model_validate(section))


@pytest.mark.parametrize("lie", ["alter", "cut", "swallow"])
def test_no_state_comes_to_exist_in_a_store_that_does_not_hold_it(bucket, gateway, tmp_path, lie):
    gateway.always = lie
    with pytest.raises(StoreUnavailable):
        publish(bucket, 10, tmp_path)
    gateway.always = ""
    assert saved_states(bucket, RING) == []
    assert publish(bucket, 10, tmp_path) == saved_states(bucket, RING)[0]
    checkpoint.verify(bucket, saved_states(bucket, RING)[0], tmp_path, "u")


@pytest.mark.parametrize("lie", ["alter", "cut"])
def test_what_was_changed_on_the_way_is_sent_again(bucket, gateway, tmp_path, lie):
    gateway.faults = [lie]
    checkpoint.verify(bucket, publish(bucket, 10, tmp_path), tmp_path, "u")


def test_a_container_that_is_lost_after_its_upload_keeps_the_state_from_existing(tmp_path):
    store, folder = FolderStore(tmp_path / "store"), keys.state(RING, 0, 0, 10)
    with pytest.raises(StoreUnavailable, match="shows nothing"):
        checkpoint.publish(
            store,
            snapshot(10),
            folder,
            RING,
            tmp_path,
            0,
            before_manifest=lambda: store.delete(keys.ptz(folder, 10)),
        )
    assert saved_states(store, RING) == []


@pytest.mark.parametrize("pruned", [False, True])
def test_the_state_that_was_resumed_is_good_after_healthy_steps_if_it_is_still_there(
    tmp_path, pruned
):
    store = FolderStore(tmp_path)
    ref = publish(store, 10, tmp_path)
    saver = Saver(store, tmp_path, Checkpoint())
    saver.resumed(ref)
    for step in range(11, 11 + GOOD_AFTER_STEPS):
        if pruned:
            catalogue.delete_state(store, ref)
        assert store.head(f"{ref.key}/good") is None
        saver.note_step(step, epoch=0, healthy=True)
    assert saver.close(60)
    assert (store.head(f"{ref.key}/good") is None) == pruned
