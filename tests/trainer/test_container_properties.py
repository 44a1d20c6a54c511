"""Any state comes back bit by bit; no damaged or lying file is used, whatever became of it."""

import copy
import json
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import (
    CheckpointError,
    Snapshot,
    read_container,
    verify_container,
    write_container,
)
from forkcast_trainer.frame_codecs import CODECS
from forkcast_trainer.table import DTYPES, Role
from forkcast_wire import keys
from forkcast_wire.documents import read_manifest
from forkcast_wire.store import FolderStore
from tests.trainer import containers

DATA = Path(__file__).parents[1] / "data" / "state_v1"
SECOND = DATA.with_name("state_v2")
META = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7, "loss": 1.5}


def same(a, b):
    """Equal to the bit: NaNs with their payload, the sign of a zero."""
    raw = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


@st.composite
def tensors(draw):
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    count = int(np.prod(shape, dtype=int))
    if dtype is torch.bool:
        bits = draw(st.binary(min_size=count, max_size=count))
        return torch.tensor([b & 1 for b in bits], dtype=dtype).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if draw(st.booleans()):  # something that packs
        raw = bytes(len(raw))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    made = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
    return made.T if made.ndim == 2 and draw(st.booleans()) else made


@settings(deadline=None, max_examples=300)
@given(
    state=st.dictionaries(st.text(st.characters(codec="utf-8")), tensors(), max_size=4),
    level=st.sampled_from([0, 1, 3, 19]),
    chunk=st.sampled_from([8, 24, 64, 4 << 20]),
    threads=st.sampled_from([1, 2]),
)
def test_any_state_comes_back_to_the_bit(tmp_path_factory, state, level, chunk, threads):
    path = tmp_path_factory.getbasetemp() / "any.ptz"
    saved = Snapshot(META, state)
    digest = write_container(saved, path, level, threads=threads, chunk_bytes=chunk)
    back = read_container(path, digest, threads=threads)
    assert back.meta == META
    assert list(back.tensors) == list(state)
    assert all(same(back.tensors[name], state[name]) for name in state)
    assert verify_container(path, digest) == META


def test_a_large_tensor_of_every_dtype_comes_back_to_the_bit(tmp_path):
    """Large enough that noise is told from what packs, over more than one chunk."""
    draw = torch.Generator().manual_seed(1)
    state = {}
    for name, dtype in DTYPES.items():
        noise = torch.randn(300_000, generator=draw)
        state[name] = (noise > 0) if dtype is torch.bool else (noise * 50).to(dtype)
    state["special"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, -1e38] * 40_000)
    digest = write_container(Snapshot(META, state), tmp_path / "x.ptz", 1, chunk_bytes=1 << 18)
    back = read_container(tmp_path / "x.ptz", digest).tensors
    assert all(same(back[name], state[name]) for name in state)
    used = {
        frame[2]
        for row in containers.parts(tmp_path / "x.ptz")[0]["tensors"]
        for frame in row["frames"]
    }
    assert used == {"planes", "high8"}


# ---------------------------------------------------------------- damage


def seeds(folder):
    """A small state, packed, raw and with moments in 8 bits, each in several frames."""
    draw = torch.Generator().manual_seed(0)
    state = {
        "weights": torch.randn(16, 12, generator=draw) / 50,
        "zeros": torch.zeros(96, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False] * 50),
        "step": torch.tensor(7.0),
        "none": torch.empty(0, 3),
    }
    state["first"] = state["weights"] * 2.0 ** torch.arange(-6, 6)
    state["second"] = state["first"].square()
    roles = {"first": Role.FIRST_MOMENT, "second": Role.SECOND_MOMENT}
    saved, made = Snapshot(META, state, roles), []
    for level, chunk, int8 in ((1, 256, False), (0, 64, False), (1, 256, True), (0, 64, True)):
        write_container(saved, folder / "seed.ptz", level, chunk_bytes=chunk, int8=int8)
        made.append((folder / "seed.ptz").read_bytes())
        assert len(containers.parts(folder / "seed.ptz")[0]["tensors"][0]["frames"]) > 2
    return made


def flipped(data, rng):
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def longer(data, rng):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def overwritten(data, rng):
    at = rng.randrange(len(data))
    piece = rng.randbytes(rng.randint(1, 32))
    return (data[:at] + piece + data[at + len(piece) :])[: max(len(data), at + 1)]


def swapped(data, rng):
    """Two stretches change places: frames, or parts of them."""
    size = rng.choice([8, 64, 256])
    a, b = sorted(rng.sample(range(containers.HEAD, len(data) - size), 2))
    first, second = data[a : a + size], data[b : b + size]
    found = bytearray(data)
    found[a : a + size], found[b : b + size] = second, first
    return bytes(found)


#: What a row's number may claim.
LIES = [
    -1,
    0,
    1,
    7,
    8,
    63,
    65,
    1 << 16,
    1 << 31,
    1 << 40,
    1 << 48,
    1 << 62,
    1 << 70,
    0.5,
    None,
    "8",
    [],
    True,
]


def lying(data, rng, path):
    """An index that says other than the frames, with a digest that is right."""
    path.write_bytes(data)
    document, frames = containers.parts(path)
    before = copy.deepcopy(document)
    rows = [row for row in document["tensors"] if row["frames"]]
    row = rng.choice(rows)
    what = rng.randrange(8)
    if what == 0:
        rng.choice(row["frames"])[rng.randrange(2)] = rng.choice(LIES)
    elif what == 1:
        frame = rng.choice(row["frames"])
        # that a moment is the first and not the second, nothing says but the index
        others = {"first8", "second8"} if frame[2] in ("first8", "second8") else {frame[2]}
        frame[2] = rng.choice([*sorted(set(CODECS) - others), "zstd", "", None, 1])
    elif what == 2:
        one, other = rng.choice(rows)["frames"], row["frames"]
        i, j = rng.randrange(len(one)), rng.randrange(len(other))
        one[i], other[j] = other[j], one[i]
    elif what == 3:
        row["shape"] = [rng.choice(LIES) for _ in range(rng.randint(1, 3))]
        if row["shape"] in ([1], [1, 1], [1, 1, 1]):  # of a single number that is no lie
            row["shape"] = [1, 2]
    elif what == 4:
        document["chunk_bytes"] = rng.choice([*LIES, 16, 128, 512, 64 << 20])
    elif what == 5:
        row["frames"].pop(rng.randrange(len(row["frames"])))
    elif what == 6:
        one = rng.choice(row["frames"])
        step = rng.choice([-8, -1, 1, 8])
        one[0], one[1] = one[0] + step, one[1] - step
    else:
        row["dtype"] = rng.choice(["float64", "int64", "complex64", "", None])
    if json.dumps(document) == json.dumps(before):
        return None
    containers.signed(path, document, frames)
    return path.read_bytes()


MOST = 4096


def small(_meta, table):
    for name, row in table.items():
        if int(np.prod([float(n) for n in row.shape])) > MOST:
            raise CheckpointError(f"{name}: no model's")


#: How many; more with e.g. FORKCAST_DAMAGED_FILES=100000.
DAMAGED = int(os.environ.get("FORKCAST_DAMAGED_FILES", "12000"))


def test_twelve_thousand_damaged_files_are_refused_in_bounded_memory(tmp_path):
    rng, path, done = random.Random(12), tmp_path / "x.ptz", 0
    kinds = (flipped, cut, longer, overwritten, swapped, lying)
    originals = seeds(tmp_path)
    taken, said = [], set()
    tracemalloc.start()
    try:
        while done < DAMAGED:
            data, kind = rng.choice(originals), kinds[done % len(kinds)]
            damaged = lying(data, rng, path) if kind is lying else kind(data, rng)
            if damaged is None or damaged == data:
                continue
            path.write_bytes(damaged)
            done += 1
            try:
                found = read_container(path, admit=small, threads=1)
            except CheckpointError as error:
                said.add(str(error))
            else:
                taken.append((kind.__name__, found))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken == []
    assert all("x.ptz: " in text or "no model's" in text for text in said)
    assert not any("\n" in text for text in said)
    assert most < 16 << 20


# ---------------------------------------------------------------- older files


EXPECTED = {
    "float32": torch.arange(600, dtype=torch.float32).reshape(20, 30) / 7,
    "float64": torch.arange(5, dtype=torch.float64) / 3,
    "float16": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "bfloat16": torch.tensor(2.5, dtype=torch.bfloat16),
    "int64": torch.arange(-2, 2),
    "int32": torch.arange(4, dtype=torch.int32),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
}


@pytest.mark.parametrize("kind", [StateKind.RING, StateKind.CHECKPOINT])
@pytest.mark.parametrize(("version", "folder"), [(1, DATA), (2, SECOND)])
def test_a_state_of_an_older_forkcast_is_read_and_verified(tmp_path, version, folder, kind):
    """Those of version 1 were written by the last Forkcast that wrote it, those of version 2 by the
    last that had the codecs raw and planes alone.
    """
    store = FolderStore(folder)
    manifest = read_manifest(store, keys.state(kind, 0, 0, 7))
    assert manifest.format_version == version
    saved = checkpoint.fetch(store, manifest.state, tmp_path, "u")
    assert saved.meta == META
    assert saved.tensors.keys() == EXPECTED.keys()
    assert all(same(saved.tensors[name], EXPECTED[name]) for name in EXPECTED)
    checkpoint.verify(store, manifest.state, tmp_path, "u")


@pytest.mark.parametrize("kind", [StateKind.RING, StateKind.CHECKPOINT], ids=["zstd", "raw"])
def test_a_damaged_file_of_version_1_is_refused_or_its_tensors_are_right(tmp_path, kind):
    folder, rng, path = DATA / keys.state(kind, 0, 0, 7), random.Random(3), tmp_path / "x.ptz"
    data = (folder / "cp_7.ptz").read_bytes()
    digest = read_manifest(FolderStore(DATA), keys.state(kind, 0, 0, 7)).state.digest
    for turn in range(1000):
        damaged = (flipped, cut, longer, overwritten, swapped)[turn % 5](data, rng)
        if damaged == data:
            continue
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_container(path, digest)
        try:  # without the digest a header may differ unseen; the tensors carry their own
            read_container(path, admit=small)
        except CheckpointError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1, -2]},
        {"shape": ["2"]},
        {"shape": [1 << 40, 1 << 40]},
        {"size": -8},
        {"offset": 4},
        {"dtype": "object"},
        {"codec": "pickle"},
        {"codec": "zstd"},
        {"raw_size": 1 << 60},
        {"sha256": None},
    ],
)
def test_a_lying_table_of_version_1_is_refused(tmp_path, change):
    row = {"name": "a", "dtype": "float32", "shape": [2], "codec": "raw", "offset": 0}
    sha = "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    row |= {"size": 8, "raw_size": 8, "sha256": sha}
    containers.old(tmp_path / "x.ptz", META, [row], bytes(8))
    assert torch.equal(read_container(tmp_path / "x.ptz").tensors["a"], torch.zeros(2))
    containers.old(tmp_path / "x.ptz", META, [{**row, **change}], bytes(8))
    with pytest.raises(CheckpointError):
        read_container(tmp_path / "x.ptz")
