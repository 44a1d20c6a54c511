"""A saved state that is damaged, or that this version cannot restore, gives way to the next older one;
if none is left, the trainer says so instead of beginning again at step 0.
"""

import json
import shutil
import struct
import threading
import tracemalloc
from functools import partial

import pytest
import torch
import zstandard

from forkcast.records import StateKind
from forkcast_trainer import checkpoint, state
from forkcast_trainer.checkpoint import (
    CheckpointError,
    Snapshot,
    read_container,
    verify_container,
    write_container,
)
from forkcast_trainer.errors import NoUsableStateError
from forkcast_trainer.train import TrainingRun
from forkcast_wire import keys
from forkcast_wire.documents import StateManifest, load, read_manifest, survey
from forkcast_wire.store import FolderStore
from tests.trainer import containers

STEPS = (10, 20, 30)


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory, run_in):
    """A run that stopped at step 30, with a state of every ten steps."""
    run = run_in(tmp_path_factory.mktemp("saved") / "r", steps=60)
    stop = threading.Event()
    training = TrainingRun(run.manifest.spec, run.folder, monitor="", attempt=0, stop=stop)
    scratch = run.folder / "scratch"
    while training.engine.position.step < STEPS[-1]:
        training.engine.step()
        step = training.engine.position.step
        if step in STEPS:
            folder = keys.state(StateKind.CHECKPOINT, 0, 0, step)
            checkpoint.publish(
                FolderStore(run.folder),
                state.snapshot(training.engine),
                folder,
                StateKind.CHECKPOINT,
                scratch,
                1,
            )
    training.report.reporter.close()
    return run


@pytest.fixture
def copied(saved_run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved_run.folder, folder)
    return folder


def resumed(run, folder):
    """The step that a new attempt begins with."""
    stop = threading.Event()
    training = TrainingRun(run.manifest.spec, folder, monitor="", attempt=1, stop=stop)
    training.report.reporter.close()
    return training.engine.position.step


def newest(folder):
    return folder / keys.state(StateKind.CHECKPOINT, 0, 0, STEPS[-1])


def test_every_flipped_bit_of_a_manifest_is_seen_or_changes_nothing_that_is_read(saved_run):
    """What is left are the figures for people: the loss and the versions of what wrote it."""
    store = FolderStore(saved_run.folder)
    key = keys.state(StateKind.CHECKPOINT, 0, 0, 30)
    path = newest(saved_run.folder) / "manifest.json"
    good = path.read_bytes()
    before = read_manifest(store, key)
    scratch = saved_run.folder / "scratch"
    passed = []
    try:
        for place in range(8 * len(good)):
            flipped = bytearray(good)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            if (found := read_manifest(store, key)) is None:
                continue
            try:
                checkpoint.verify(store, found.state, scratch, "u")
            except CheckpointError:
                continue
            passed.append(found)
    finally:
        path.write_bytes(good)
    assert passed  # the loss, at least
    assert {one.state for one in passed} == {before.state}


def break_key(folder):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["state"]["key"] = "../" + document["state"]["key"][3:]
    path.write_text(json.dumps(document))


def break_size(folder):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["state"]["size_bytes"] += 1
    path.write_text(json.dumps(document))


def empty_manifest(folder):
    (folder / "manifest.json").write_bytes(b"")


def cut_container(folder):
    (path,) = folder.glob("cp_*.ptz")
    path.write_bytes(path.read_bytes()[:-7])


def newer_version(folder):
    rewrite(folder, lambda saved: Snapshot({**saved.meta, "later": 1}, saved.tensors))


def short_generator(folder):
    rewrite(
        folder, lambda saved: with_tensor(saved, "rng.torch", torch.zeros(7, dtype=torch.uint8))
    )


def no_numbers(folder):
    def change(saved):
        weight = saved.tensors["model.transformer.wte.weight"].clone()
        weight[0, 0] = torch.nan
        return with_tensor(saved, "model.transformer.wte.weight", weight)

    rewrite(folder, change)


def rewrite(folder, change):
    """Another state in the same place, with a manifest that is right."""
    store, before = FolderStore(folder.parents[3]), load_manifest(folder)
    saved = read_container(folder / f"cp_{before.state.step}.ptz")
    shutil.rmtree(folder)
    scratch = store.root / "scratch"
    key, kind = before.state.key, StateKind.CHECKPOINT
    checkpoint.publish(store, change(saved), key, kind, scratch, 1)


def load_manifest(folder):
    return load(StateManifest, (folder / "manifest.json").read_bytes())


def with_tensor(saved, name, tensor):
    return Snapshot(saved.meta, {**saved.tensors, name: tensor})


DAMAGES = [
    break_key,
    break_size,
    empty_manifest,
    cut_container,
    newer_version,
    short_generator,
    no_numbers,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_damaged_newest_state_gives_way_to_the_one_before(saved_run, copied, damage):
    assert resumed(saved_run, copied) == 30
    damage(newest(copied))
    assert resumed(saved_run, copied) == 20


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_run_of_which_no_state_is_left_does_not_begin_again(saved_run, copied, damage):
    for step in STEPS:
        damage(copied / keys.state(StateKind.CHECKPOINT, 0, 0, step))
    with pytest.raises(NoUsableStateError, match="none of the 3 saved states can be restored"):
        resumed(saved_run, copied)


def test_a_state_that_other_versions_wrote_is_taken_and_said(saved_run, copied, capsys):
    assert resumed(saved_run, copied) == 30
    assert "train.other_versions" not in capsys.readouterr().out
    path = newest(copied) / "manifest.json"
    document = json.loads(path.read_text())
    document["versions"]["torch"] = "1.0.0"
    path.write_text(json.dumps(document))
    assert resumed(saved_run, copied) == 30
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "train.other_versions" in one]
    assert "1.0.0" in line
    assert "transformers" not in line


def test_a_run_whose_only_state_is_that_of_step_0_may_begin_again(saved_run, copied):
    for step in STEPS:
        shutil.rmtree(copied / keys.state(StateKind.CHECKPOINT, 0, 0, step))
    first = copied / keys.state(StateKind.RING, 0, 0, 0)
    first.mkdir(parents=True)
    (first / "manifest.json").write_bytes(b"")
    assert survey(FolderStore(copied), StateKind.RING)[1] == [keys.state(StateKind.RING, 0, 0, 0)]
    assert resumed(saved_run, copied) == 0


# ---------------------------------------------------------------- what no state holds


def meta(**changes):
    return lambda saved: Snapshot({**saved.meta, **changes}, saved.tensors)


def within(field, **changes):
    return lambda saved: Snapshot(
        {**saved.meta, field: {**saved.meta[field], **changes}}, saved.tensors
    )


def tensor(name, make):
    return lambda saved: with_tensor(saved, name, make(saved.tensors.get(name)))


def lacking(name):
    return lambda saved: Snapshot(saved.meta, {k: v for k, v in saved.tensors.items() if k != name})


BIAS = "transformer.ln_f.bias"
IMPOSSIBLE = {
    "a factor that is a list": within("actions", learning_rate_factor=[]),
    "a factor that is not finite": within("actions", learning_rate_factor=float("nan")),
    "an unknown clipping policy": within("actions", clipping="Nobody"),
    "a clipping state of another policy": meta(clipping={"mean": 1.0}),
    "a sampler's place that is text": within("sampler", position="x"),
    "an internal that is no list": within("internals", activation_sd=3),
    "a spike window of text": within("spikes", losses=["x"]),
    "a spike window that is not finite": within("spikes", norms=[float("inf")]),
    "a negative step": meta(step=-1),
    "a loss that is not finite": meta(loss=float("nan")),
    "a first moment of another shape": tensor(
        f"optimizer.{BIAS}.exp_avg", lambda t: t.reshape(1, -1)
    ),
    "a second moment that is a number": tensor(
        f"optimizer.{BIAS}.exp_avg_sq", lambda _: torch.tensor(1.0)
    ),
    "a counter that is a vector": tensor(f"optimizer.{BIAS}.step", lambda _: torch.ones(3)),
    "two moments of three": lacking(f"optimizer.{BIAS}.exp_avg_sq"),
    "moments of nobody": tensor("optimizer.nobody.step", lambda _: torch.tensor(1.0)),
    "a buffer of nobody": tensor("buffer.nobody", lambda _: torch.ones(1 << 10)),
    "a torch generator of zeros": tensor("rng.torch", torch.zeros_like),
    "a short torch generator": tensor("rng.torch", lambda t: t[:100]),
    "a CUDA generator that is none": tensor(
        "rng.cuda", lambda _: torch.zeros(9, dtype=torch.uint8)
    ),
    "a python generator cut short": meta(**{"rng.python": [3, [1, 2], None]}),
    "a numpy generator of another kind": meta(**{"rng.numpy": ["nobody", [1], 0, 0, 0.0]}),
    "a generator of a rank that is not told of": tensor(
        "rng.torch.rank9", lambda _: torch.zeros(5056, dtype=torch.uint8)
    ),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_state_that_cannot_be_is_refused_whole(make_engine, change):
    """Nothing of it is taken over: weights, moments, generators and place stay what they were."""
    one = make_engine()
    for _ in range(2):
        one.step()
    before = state.snapshot(one)
    broken = change(before)
    with pytest.raises(CheckpointError):
        state.check(one, broken)
    with pytest.raises(CheckpointError):
        state.restore(one, broken)
    after = state.snapshot(one)
    assert after.meta == before.meta
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)


# ---------------------------------------------------------------- memory


def test_a_file_cannot_ask_for_more_memory_than_the_model_has(make_engine, tmp_path):
    """A gigabyte of zeros packs into some kB; the index says it before a frame is unpacked."""
    one = make_engine()
    saved = state.snapshot(one)
    name, path = "model.transformer.wte.weight", tmp_path / "x.ptz"
    zeros = torch.zeros(1).expand(1 << 28)
    plane = zstandard.ZstdCompressor().compress(bytes(1 << 20))
    frame = struct.pack("<4I", *[len(plane)] * 4) + plane * 4
    frames = [containers.frame(frame, "planes", 64 + n * len(frame)) for n in range(1 << 8)]
    row = {"name": name, "dtype": "float32", "shape": list(zeros.shape), "frames": frames}
    rng = {"name": "rng.torch", "dtype": "uint8", "shape": [0], "frames": []}
    document = {"chunk_bytes": 4 << 20, "meta": saved.meta, "tensors": [row, rng]}
    containers.signed(path, document, frame * (1 << 8))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="shape"):
            read_container(path, admit=partial(state.admit, one))
        verify_container(path)  # it is what it says; read chunk by chunk
        frames[7][3] = frames[7][3][::-1]
        containers.signed(path, document, frame * (1 << 8))
        with pytest.raises(CheckpointError, match="damaged"):
            verify_container(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 192 << 20


def test_a_real_container_is_admitted_and_verified(make_engine, tmp_path):
    one = make_engine()
    one.step()
    digest = write_container(state.snapshot(one), tmp_path / "x.ptz", 1)
    saved = read_container(tmp_path / "x.ptz", digest, partial(state.admit, one))
    assert verify_container(tmp_path / "x.ptz", digest) == saved.meta


@pytest.mark.parametrize("shape", [[0, 1 << 48], [0] + [1 << 48] * 100], ids=["large", "many"])
def test_a_shape_that_torch_refuses_is_damage(tmp_path, shape):
    row = {"name": "a", "dtype": "float32", "shape": shape, "frames": []}
    containers.signed(tmp_path / "x.ptz", {"chunk_bytes": 64, "meta": {}, "tensors": [row]})
    try:
        saved = read_container(tmp_path / "x.ptz")
    except CheckpointError:
        return
    assert tuple(saved.tensors["a"].shape) == tuple(shape)


def test_more_memory_than_the_file_has_frames_for_is_damage(tmp_path):
    frames = [containers.frame(b"12345678")]
    row = {"name": "a", "dtype": "float32", "shape": [1 << 38], "frames": frames}
    document = {"chunk_bytes": 64 << 20, "meta": {}, "tensors": [row]}
    containers.signed(tmp_path / "x.ptz", document, b"12345678")
    with pytest.raises(CheckpointError, match="sizes contradict the shape"):
        read_container(tmp_path / "x.ptz")


def test_a_table_of_three_hundred_thousand_tensors_is_refused_by_its_length(tmp_path):
    row = {"dtype": "float32", "shape": [0], "frames": []}
    table = [{"name": str(n), **row} for n in range(300_000)]
    containers.signed(tmp_path / "x.ptz", {"chunk_bytes": 64, "meta": {}, "tensors": table})
    with pytest.raises(CheckpointError, match="300000 tensors"):
        read_container(tmp_path / "x.ptz")


def test_a_bool_that_is_neither_0_nor_1_is_refused(tmp_path):
    path = tmp_path / "x.ptz"
    write_container(Snapshot({}, {"a": torch.ones(3, dtype=torch.bool)}), path, 0)
    assert read_container(path).tensors["a"].all()
    write_container(Snapshot({}, {"a": torch.full((3,), 2, dtype=torch.uint8)}), path, 0)
    document, frames = containers.parts(path)
    document["tensors"][0]["dtype"] = "bool"
    containers.signed(path, document, frames)
    with pytest.raises(CheckpointError, match="bool"):
        read_container(path)
