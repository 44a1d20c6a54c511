"""`checkpoint.optimizerState: Int8`: which states have it, what a resume from one is, and who says so."""

import pytest
import torch

from forkcast.records import StateKind
from forkcast_trainer import state
from forkcast_trainer.checkpoint import CheckpointError, Snapshot
from forkcast_trainer.resume import SavedStates
from forkcast_trainer.saver import Saver
from forkcast_wire import keys
from forkcast_wire.documents import read_manifest
from forkcast_wire.manifest import Checkpoint
from forkcast_wire.store import FolderStore
from tests.one_step import one_step

INT8 = Checkpoint.model_validate({"optimizerState": "Int8"})
FULL = Checkpoint()


def trained(make_engine, steps=30):
    one = make_engine()
    for _ in range(steps):
        one.step()
    return one


def published(one, tmp_path, kind=StateKind.CHECKPOINT, rules=INT8):
    """The trainer's own saver at work; the reference and the manifest of what it wrote."""
    store, saver = (
        FolderStore(tmp_path / "store"),
        Saver(FolderStore(tmp_path / "store"), tmp_path, rules),
    )
    saver.save(state.snapshot(one), kind)
    assert saver.close(60)
    assert saver.error == ""
    position = one.position
    folder = keys.state(kind, position.epoch, position.attempt, position.step)
    return store, read_manifest(store, folder)


def exact(name):
    """What a state has to the bit whatever it was asked for: all but moments of inner matrices."""
    return not name.endswith((".exp_avg", ".exp_avg_sq")) or any(
        part in name for part in ("wte", "wpe", ".bias.", "ln_")
    )


def test_a_resume_from_moments_in_8_bits_is_near_and_says_so(make_engine, tmp_path):
    one = trained(make_engine)
    saved = state.snapshot(one)
    store, manifest = published(one, tmp_path)
    assert manifest.lossless is False
    losses = [one_step(one).loss for _ in range(5)]
    second = make_engine()
    found = SavedStates(second, store, tmp_path).fetch(manifest.state)
    coded = {name for name in saved.tensors if not exact(name)}
    assert found.coded == coded
    assert len(coded) > 10
    state.restore(second, found)
    now = state.snapshot(second)
    assert now.meta == {**saved.meta, "int8_restores": 1}
    for name, tensor in saved.tensors.items():
        assert torch.equal(now.tensors[name], tensor) == (name not in coded), name
        if name.endswith(".exp_avg_sq") and name in coded:
            assert torch.allclose(now.tensors[name], tensor, rtol=1 / 8, atol=0)
    for was in losses:
        assert one_step(second).loss == pytest.approx(was, abs=0.05)
    assert second.position.int8_restores == 1


def test_the_record_stays_with_the_lineage_and_counts(make_engine, tmp_path):
    one = trained(make_engine, 3)
    for turn in range(3):
        store, manifest = published(one, tmp_path / str(turn))
        one = make_engine()
        state.restore(one, SavedStates(one, store, tmp_path).fetch(manifest.state))
        assert one.position.int8_restores == turn + 1
        one.step()
    _, manifest = published(one, tmp_path / "ring", StateKind.RING)
    assert manifest.lossless is True  # what was lost, was lost before
    found = SavedStates(one, FolderStore(tmp_path / "ring" / "store"), tmp_path).fetch(
        manifest.state
    )
    other = make_engine()
    state.restore(other, found)
    assert other.position.int8_restores == 3
    state.restore(other, state.snapshot(make_engine()))
    assert other.position.int8_restores == 0


@pytest.mark.parametrize(
    ("kind", "rules", "lossless"),
    [
        (StateKind.CHECKPOINT, INT8, False),
        (StateKind.CHECKPOINT, FULL, True),
        (StateKind.RING, INT8, True),
        (StateKind.RING, FULL, True),
    ],
)
def test_only_checkpoints_are_ever_in_8_bits(make_engine, tmp_path, kind, rules, lossless):
    """Branches fork from the ring: what they compare must be what the run would have done."""
    one = trained(make_engine, 2)
    saved = state.snapshot(one)
    store, manifest = published(one, tmp_path, kind, rules)
    assert manifest.lossless is lossless
    found = SavedStates(one, store, tmp_path).fetch(manifest.state)
    assert bool(found.coded) is not lossless
    same = all(torch.equal(found.tensors[name], t) for name, t in saved.tensors.items())
    assert same is lossless


def test_of_one_step_a_resume_takes_the_state_with_every_bit(make_engine, tmp_path):
    one = trained(make_engine, 2)
    published(one, tmp_path, StateKind.RING)
    store, _ = published(one, tmp_path)
    other = make_engine()
    found = SavedStates(other, store, tmp_path)._newest()
    assert found.ref.kind is StateKind.RING
    assert other.position.int8_restores == 0


def test_before_the_first_step_there_is_nothing_to_lose(make_engine, tmp_path):
    _, manifest = published(make_engine(), tmp_path)
    assert manifest.lossless is True


def test_a_moment_that_no_gradients_lead_to_is_brought_back_only_from_8_bits(make_engine, tmp_path):
    """A state to the bit is what it was, whatever was done to its optimizer."""
    one = trained(make_engine, 3)
    name = "transformer.h.0.mlp.c_fc.weight"
    slots = one.optimizer.state[one.named[name]]
    slots["exp_avg_sq"].mul_(1e-8)
    ratios = []
    for rules in (FULL, INT8):
        store, manifest = published(one, tmp_path / rules.optimizer_state, rules=rules)
        other = make_engine()
        state.restore(other, SavedStates(other, store, tmp_path).fetch(manifest.state))
        found = other.optimizer.state[other.named[name]]
        ratios.append(
            float((found["exp_avg"].abs() / found["exp_avg_sq"].sqrt()).nan_to_num().max())
        )
    assert ratios[0] > 1000
    assert ratios[1] < 2


def test_a_count_that_is_none_is_refused(make_engine):
    one = make_engine()
    saved = state.snapshot(one)
    for wrong in (-1, 1.5, "1", True):
        with pytest.raises(CheckpointError, match="int8_restores"):
            state.restore(one, Snapshot({**saved.meta, "int8_restores": wrong}, saved.tensors))
