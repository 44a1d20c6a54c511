"""A checkpoint is whole or it does not exist."""

import json
import pickle
import random
import struct

import pytest
import torch
import zstandard

from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import (
    MAGIC,
    CheckpointError,
    Snapshot,
    fetch,
    publish,
    read_container,
    write_container,
)
from forkcast_wire.store import FolderStore

META = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7, "loss": 1.5}


def small(value=1.0):
    tensors = {
        "a": torch.full((3, 5), value),
        "b": torch.arange(4, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "d": torch.empty(0, 3),
    }
    return Snapshot(META, tensors)


def assemble(path, table, frames=b""):
    header = json.dumps({"meta": META, "tensors": table}).encode()
    path.write_bytes(MAGIC + struct.pack("<Q", len(header)) + header + frames)


def row(**other):
    return {
        "name": "a",
        "dtype": "float32",
        "shape": [2],
        "codec": "raw",
        "offset": 0,
        "size": 8,
        "raw_size": 8,
        "sha256": "",
        **other,
    }


@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_is_written_is_read_back_bit_by_bit(tmp_path, level):
    digest = write_container(small(), tmp_path / "x.ptz", level)
    back = read_container(tmp_path / "x.ptz", digest)
    assert back.meta == META
    for name, tensor in small().tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


def test_every_single_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "x.ptz"
    digest = write_container(small(), path, 1)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(CheckpointError):
            read_container(path, digest)


def test_damage_without_a_digest_is_refused_by_name_or_harmless(tmp_path):
    path, rng = tmp_path / "x.ptz", random.Random(3)
    write_container(small(), path, 1)
    data = path.read_bytes()
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randint(0, len(damaged))] if rng.random() < 0.2 else damaged)
        try:
            back = read_container(path)
        except CheckpointError:
            continue
        for name, tensor in small().tensors.items():  # the tensors carry their own digests
            if name in back.tensors and back.tensors[name].shape == tensor.shape:
                assert back.tensors[name].numel() == tensor.numel()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1, -2]},
        {"shape": ["2"]},
        {"shape": [True]},
        {"shape": [1 << 40, 1 << 40]},
        {"size": -8},
        {"offset": 4},
        {"dtype": "object"},
        {"codec": "pickle"},
        {"raw_size": 1 << 60},
        {"sha256": None},
    ],
)
def test_a_lying_table_is_refused(tmp_path, change):
    assemble(tmp_path / "x.ptz", [row(**change)], b"\0" * 8)
    with pytest.raises(CheckpointError):
        read_container(tmp_path / "x.ptz")


def test_a_frame_that_would_unpack_to_more_than_the_table_says_is_not_unpacked(tmp_path):
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    assemble(tmp_path / "x.ptz", [row(codec="zstd", size=len(bomb))], bomb)
    with pytest.raises(CheckpointError, match="not the table's"):
        read_container(tmp_path / "x.ptz")


def test_a_name_that_comes_twice_is_refused(tmp_path):
    sha = "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    assemble(tmp_path / "x.ptz", [row(sha256=sha), row(sha256=sha, offset=8)], b"\0" * 16)
    with pytest.raises(CheckpointError):
        read_container(tmp_path / "x.ptz")


class _Canary:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_in_its_place_is_not_run(tmp_path):
    (tmp_path / "x.ptz").write_bytes(pickle.dumps(_Canary()))
    with pytest.raises(CheckpointError, match="not a Forkcast checkpoint"):
        read_container(tmp_path / "x.ptz")


def test_a_published_state_is_never_overwritten(tmp_path):
    store, scratch = FolderStore(tmp_path / "s"), tmp_path / "scratch"
    ref = publish(store, small(), "ring/e0/a0/000000000007", StateKind.RING, scratch, 1)
    again = publish(store, small(), ref.key, StateKind.RING, scratch, 1)
    assert again == ref
    with pytest.raises(CheckpointError, match="another state"):
        publish(store, small(2.0), ref.key, StateKind.RING, scratch, 1)
    assert torch.equal(fetch(store, ref, scratch, "u").tensors["a"], small().tensors["a"])
    assert list(scratch.iterdir()) == []


def test_a_state_of_another_run_is_refused(tmp_path):
    store = FolderStore(tmp_path / "s")
    ref = publish(store, small(), "ring/e0/a0/000000000007", StateKind.RING, tmp_path / "x", 1)
    with pytest.raises(CheckpointError, match="belongs to run u"):
        fetch(store, ref, tmp_path / "x", "other")


def test_what_a_killed_process_left_in_the_scratch_folder_is_removed(tmp_path):
    mine = checkpoint._scratch_file(tmp_path, "ring/e0")
    dead = tmp_path / "4194304999.ring_e0"
    for path in (mine, dead):
        path.write_bytes(b"x")
    checkpoint.sweep(tmp_path)
    assert mine.exists()
    assert not dead.exists()
