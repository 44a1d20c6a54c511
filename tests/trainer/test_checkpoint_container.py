"""A checkpoint is whole or it does not exist."""

import pickle
import struct

import pytest
import torch
import zstandard

from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import (
    CheckpointError,
    Snapshot,
    fetch,
    publish,
    read_container,
    write_container,
)
from forkcast_trainer.container import read_tensor
from forkcast_trainer.frame_codecs import CODECS
from forkcast_wire.store import FolderStore
from tests.trainer import containers

META = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7, "loss": 1.5}


def small(value=1.0):
    tensors = {
        "a": torch.full((3, 5), value),
        "b": torch.arange(4, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "d": torch.empty(0, 3),
    }
    return Snapshot(META, tensors)


def document(**other):
    """The index of a file that holds two floats."""
    tensor = {"name": "a", "dtype": "float32", "shape": [2], "frames": [containers.frame(bytes(8))]}
    chunk = other.pop("chunk_bytes", 64)
    return {"chunk_bytes": chunk, "meta": META, "tensors": [{**tensor, **other}]}


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
    digest = write_container(small(), path, 1, chunk_bytes=16)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(CheckpointError):
            read_container(path, digest)
        with pytest.raises(CheckpointError):
            read_container(path)  # the index has a digest of its own


def test_a_file_put_together_by_hand_is_read(tmp_path):
    containers.signed(tmp_path / "x.ptz", document(), bytes(8))
    assert torch.equal(read_container(tmp_path / "x.ptz").tensors["a"], torch.zeros(2))


RIGHT = containers.frame(bytes(8))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1, -2]},
        {"shape": ["2"]},
        {"shape": [True]},
        {"shape": 2},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [3]},
        {"dtype": "object"},
        {"dtype": []},
        {"chunk_bytes": 0},
        {"chunk_bytes": 4},
        {"chunk_bytes": 1 << 30},
        {"chunk_bytes": 64.0},
        {"chunk_bytes": True},
        {"chunk_bytes": "64"},
        {"frames": []},
        {"frames": [RIGHT, RIGHT]},
        {"frames": 7},
        {"frames": [[65, *RIGHT[1:]]]},
        {"frames": [[-64, *RIGHT[1:]]]},
        {"frames": [[64, -8, *RIGHT[2:]]]},
        {"frames": [[64, 0, *RIGHT[2:]]]},
        {"frames": [[64, 7, *RIGHT[2:]]]},
        {"frames": [[64, 1 << 60, *RIGHT[2:]]]},
        {"frames": [[64, 8, "pickle", RIGHT[3]]]},
        {"frames": [[64, 8, [], RIGHT[3]]]},
        {"frames": [[64, 8, "planes", RIGHT[3]]]},
        {"frames": [[64, 8, "high8", RIGHT[3]]]},
        {"frames": [[64, 8, "first8", RIGHT[3]]]},
        {"dtype": "int32", "frames": [[64, 8, "second8", RIGHT[3]]]},
        {"frames": [[64, 8, "raw", None]]},
        {"frames": [[64, 8, "raw"]]},
        {"frames": [None]},
    ],
    ids=str,
)
def test_a_lying_index_is_refused(tmp_path, change):
    containers.signed(tmp_path / "x.ptz", document(**change), bytes(8))
    with pytest.raises(CheckpointError):
        read_container(tmp_path / "x.ptz")


def planes(*parts):
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


ZSTD = zstandard.ZstdCompressor().compress
BAD_PLANES = {
    "a bomb": planes(ZSTD(bytes(64 << 20)), b"", b"", b""),
    "a size that is not stated": planes(
        zstandard.ZstdCompressor().compressobj().flush(), b"", b"", b""
    ),
    "lengths cut short": b"\0" * 15,
    "lengths that are not the frame's": planes(bytes(128), bytes(128), bytes(128), bytes(128))[:-1],
    "a part that is no zstd": planes(b"x" * 20, bytes(128), bytes(128), bytes(128)),
    "bytes after a part": planes(ZSTD(bytes(128)) + b"x", bytes(128), bytes(128), bytes(128)),
    "a part that is cut": planes(ZSTD(bytes(128))[:-1], bytes(128), bytes(128), bytes(128)),
    "a part of another plane's size": planes(ZSTD(bytes(64)), bytes(128), bytes(128), bytes(128)),
}


@pytest.mark.parametrize("frame", BAD_PLANES.values(), ids=BAD_PLANES)
def test_planes_that_are_not_the_chunks_are_refused_before_they_are_unpacked(tmp_path, frame):
    frames = [containers.frame(frame, "planes")]
    made = document(shape=[1024], frames=frames, chunk_bytes=4096)
    containers.signed(tmp_path / "x.ptz", made, frame)
    with pytest.raises(CheckpointError, match="a: "):
        read_container(tmp_path / "x.ptz")


def test_a_name_that_comes_twice_is_refused(tmp_path):
    made = document()
    second = {**made["tensors"][0], "frames": [containers.frame(bytes(8), at=72)]}
    made["tensors"].append(second)
    containers.signed(tmp_path / "x.ptz", made, bytes(16))
    with pytest.raises(CheckpointError):
        read_container(tmp_path / "x.ptz")
    second["name"] = "b"
    containers.signed(tmp_path / "x.ptz", made, bytes(16))
    assert len(read_container(tmp_path / "x.ptz").tensors) == 2


def test_a_later_version_is_said_to_be_one(tmp_path):
    write_container(small(), tmp_path / "x.ptz", 1)
    data = (tmp_path / "x.ptz").read_bytes()
    (tmp_path / "x.ptz").write_bytes(data[:7] + b"\3" + data[8:])
    with pytest.raises(CheckpointError, match="format 3; this version of Forkcast reads 1 and 2"):
        read_container(tmp_path / "x.ptz")


def test_a_file_whose_writing_was_cut_short_is_no_container(tmp_path, monkeypatch):
    path = tmp_path / "x.ptz"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(CODECS, "planes", type("Full", (), {"encode": full}))
    with pytest.raises(OSError, match="No space"):
        write_container(small(), path, 1, threads=2)
    with pytest.raises(CheckpointError, match="not a Forkcast checkpoint"):
        read_container(path)


@pytest.mark.parametrize("level", [0, 1])
def test_threads_and_chunks_change_nothing_of_what_is_read(tmp_path, level):
    """By a chunk of two floats, the tensors of the small state have one to eight frames."""
    for chunk in (8, 64, 1 << 20):
        one, four = tmp_path / "one.ptz", tmp_path / "four.ptz"
        digest = write_container(small(), one, level, threads=1, chunk_bytes=chunk)
        assert write_container(small(), four, level, threads=4, chunk_bytes=chunk) == digest
        assert one.read_bytes() == four.read_bytes()
        for threads in (1, 4):
            back = read_container(four, digest, threads=threads)
            assert all(torch.equal(back.tensors[n], t) for n, t in small().tensors.items())


def test_one_tensor_is_read_whatever_became_of_the_others(tmp_path):
    path = tmp_path / "x.ptz"
    digest = write_container(small(), path, 1, chunk_bytes=16)
    made, _ = containers.parts(path)
    for name, expected in small().tensors.items():
        assert torch.equal(read_tensor(path, name, digest), expected)
    (first,) = [row for row in made["tensors"] if row["name"] == "a"]
    data = bytearray(path.read_bytes())
    data[first["frames"][1][0]] ^= 1
    path.write_bytes(data)
    assert torch.equal(read_tensor(path, "b", digest), small().tensors["b"])
    for look in (lambda: read_tensor(path, "a", digest), lambda: read_container(path, digest)):
        with pytest.raises(CheckpointError, match=r"x\.ptz: a: contents are damaged"):
            look()
    with pytest.raises(CheckpointError, match="holds no e"):
        read_tensor(path, "e", digest)


class Backwards:
    """A codec: the bytes in reverse."""

    LOSSLESS, FLOATS = True, False

    @staticmethod
    def decode(frame, chunk, _):
        chunk[:] = list(bytes(frame)[::-1])


def test_a_codec_is_one_line_of_the_registry(tmp_path, monkeypatch):
    raw = torch.tensor([1.5, -2.0])
    stored = bytes(raw.view(torch.uint8).numpy()[::-1])
    made = document(frames=[containers.frame(stored, "backwards")])
    containers.signed(tmp_path / "x.ptz", made, stored)
    with pytest.raises(CheckpointError, match="a: unknown codec backwards"):
        read_container(tmp_path / "x.ptz")
    monkeypatch.setitem(CODECS, "backwards", Backwards)
    assert torch.equal(read_container(tmp_path / "x.ptz").tensors["a"], raw)


def test_a_dtype_without_a_name_in_the_format_is_refused_by_the_tensors_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"a: a checkpoint holds no torch\.complex64"):
        write_container(
            Snapshot(META, {"a": torch.ones(2, dtype=torch.complex64)}), tmp_path / "x.ptz", 1
        )


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
