"""Resuming is exact, and being watched changes nothing."""

import json
import subprocess
import sys

import pytest
import torch

from forkcast.actions import Action
from forkcast_trainer.apply import apply
from forkcast_trainer.checkpoint import CheckpointError, read_container, write_container
from forkcast_trainer.placement import placement
from forkcast_trainer.state import restore, snapshot
from forkcast_trainer.step import Engine
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import TrainingRun
from tests.one_step import one_step


def manifest(policy="Norm", *, dropout="0.1", steps=200, accumulation=1):
    return TrainingRun.model_validate(
        {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "t"},
            "spec": {
                "model": {
                    "architecture": "gpt2-tiny",
                    "size": {"layers": 2, "width": 32, "heads": 2, "dropout": dropout},
                    "dtype": "Float32",
                    "device": "Cpu",
                },
                "data": {
                    "train": {"uri": "python-stdlib:", "maxBytes": 300000},
                    "validation": {"maxBatches": 2},
                    "sequenceLength": 16,
                },
                "optimizer": {"learningRate": "1e-2", "clipping": {"policy": policy}},
                "training": {
                    "totalSteps": steps,
                    "microBatchSize": 4,
                    "gradientAccumulationSteps": accumulation,
                },
                "checkpoint": {"everySteps": 100, "ringEverySteps": 50},
            },
        }
    )


def engine(tmp_path, **more):
    spec = manifest(**more).spec
    return Engine(spec, "u", tmp_path, placement(spec))


def equal(a, b):
    return (
        a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
        and {k: v for k, v in a.meta.items() if k != "attempt"}
        == {k: v for k, v in b.meta.items() if k != "attempt"}
    )


@pytest.mark.parametrize("policy", ["None", "Norm", "ZClip", "ARC", "SPAM"])
def test_fifty_steps_after_a_resume_are_bit_exact(tmp_path, policy):
    first = engine(tmp_path, policy=policy, accumulation=4)
    for _ in range(30):
        first.step()
    digest = write_container(snapshot(first), tmp_path / "x.ptz", 1)
    losses = [one_step(first).loss for _ in range(50)]
    second = engine(tmp_path, policy=policy, accumulation=4)
    second.step()  # whatever it did before must not matter
    restore(second, read_container(tmp_path / "x.ptz", digest))
    assert [one_step(second).loss for _ in range(50)] == losses
    assert equal(snapshot(first), snapshot(second))


def test_every_flipped_byte_is_refused(tmp_path):
    one = engine(tmp_path)
    path = tmp_path / "x.ptz"
    digest = write_container(snapshot(one), path, 1)
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 200)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_container(path, digest)
        with pytest.raises(CheckpointError):
            read_container(path)


def test_an_action_changes_what_the_next_steps_do(tmp_path):
    one = engine(tmp_path)
    for _ in range(30):
        one.step()
    plain_rate, plain_decay = one.rates(30)
    apply(one, Action(learning_rate_scale=0.8, weight_decay_scale=2.0, clipping="ZClip"))
    rate, decay = one.rates(30)
    assert rate == pytest.approx(0.8 * plain_rate)
    assert decay == pytest.approx(2.0 * plain_decay)
    saved = snapshot(one)
    other = engine(tmp_path)
    restore(other, saved)
    assert other.rates(30) == (rate, decay)
    assert type(other.clipping).__name__ == "ZClip"


def test_a_momentum_reset_zeroes_counters_and_warms_up_again(tmp_path):
    one = engine(tmp_path)
    for _ in range(30):
        one.step()
    before = one.rates(30)[0]
    apply(one, Action(momentum_reset=True))
    states = list(one.optimizer.state.values())
    assert all(float(s["step"]) == 0 and not s["exp_avg"].any() for s in states)
    assert one.rates(30)[0] < 0.05 * before
    assert one.rates(200)[0] == pytest.approx(one.rates(200)[0])


def trained(folder, monitor):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest().document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    subprocess.run([*command, "--monitor", monitor], cwd=folder, check=True)
    (path,) = folder.glob("checkpoints/e0/*/000000000200/cp_200.ptz")
    return read_container(path)


def test_training_is_bit_identical_watched_unwatched_and_with_a_dead_monitor(tmp_path):
    absent = trained(tmp_path / "absent", "")
    dead = trained(tmp_path / "dead", "unix:nobody.sock")
    watched_dir = tmp_path / "watched"
    watched_dir.mkdir()
    (watched_dir / "manifest.json").write_text(json.dumps(manifest().document()))
    (watched_dir / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    command = [sys.executable, "-m", "forkcast_monitor", "--manifest", "manifest.json"]
    with subprocess.Popen([*command, "--listen", "unix:m.sock"], cwd=watched_dir) as monitor:
        (watched_dir / "manifest.json").touch()
        run = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
        subprocess.run([*run, "--monitor", "unix:m.sock"], cwd=watched_dir, check=True)
        monitor.terminate()
        assert monitor.wait() == 0
    (path,) = watched_dir.glob("checkpoints/e0/*/000000000200/cp_200.ptz")
    watched = read_container(path)
    assert equal(absent, dead)
    assert equal(absent, watched)
    from forkcast_wire.statistics import read_history

    assert [row["step"] for row in read_history(watched_dir / "statistics")] == list(range(200))
