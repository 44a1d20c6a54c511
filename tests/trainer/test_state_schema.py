"""What survives a restart is what the shipped schema says, and restoring gives the saved bits."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from forkcast_trainer import randomness, schema, state
from forkcast_trainer.checkpoint import CheckpointError, Snapshot
from tests.one_step import one_step


def keeps(saved):
    schema.check(saved.meta, saved.tensors)


def changed(saved, meta=None, tensors=None, without=()):
    kept = {k: v for k, v in saved.meta.items() if k not in without}
    held = {k: v for k, v in saved.tensors.items() if k not in without}
    return Snapshot({**kept, **(meta or {})}, {**held, **(tensors or {})})


def test_a_state_keeps_to_the_schema_before_and_after_steps(make_engine):
    one = make_engine()
    keeps(state.snapshot(one))
    for _ in range(3):
        one.step()
    saved = state.snapshot(one)
    keeps(saved)
    sometimes = {"rng.ranks", "int8_restores", "model", "optimizer"}
    assert set(saved.meta) | sometimes == set(schema.schema()["meta"])
    assert any(name.endswith(".step") for name in saved.tensors)


@pytest.mark.parametrize(
    ("meta", "tensors", "without", "named"),
    [
        ({}, {}, ("sampler",), "sampler"),
        ({}, {}, ("rng.torch",), "rng.torch"),
        ({"step": "7"}, {}, (), "step"),
        ({"step": True}, {}, (), "step"),
        ({"later": 1}, {}, (), "later"),
        ({}, {"surprise": torch.zeros(1)}, (), "surprise"),
        ({}, {"rng.torch": torch.zeros(1)}, (), "rng.torch"),
        ({}, {"model.extra": torch.zeros(1)}, (), "extra"),
        ({}, {}, ("model.transformer.wte.weight",), "transformer.wte.weight"),
        ({}, {"model.transformer.wte.weight": torch.zeros(2, 2)}, (), "shape"),
        ({"sampler": {"seed": 1}}, {}, (), "another version"),
    ],
)
def test_a_state_that_breaks_the_schema_is_refused_and_changes_nothing(
    make_engine, meta, tensors, without, named
):
    one = make_engine()
    one.step()
    before = state.snapshot(one)
    with pytest.raises(CheckpointError, match=named):
        state.restore(one, changed(before, meta, tensors, without))
    after = state.snapshot(one)
    assert after.meta == before.meta
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)


def test_every_generator_is_restored(make_engine):
    one = make_engine()
    saved = state.snapshot(one)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    state.restore(one, saved)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_each_rank_gets_its_own_generator_back(make_engine):
    one = make_engine()
    mine = randomness.taken(one.place.device)
    torch.manual_seed(99)
    other = randomness.taken(one.place.device)
    saved = state.snapshot(one, [mine, other])
    keeps(saved)
    drawn = torch.rand(1).item()
    one.place = replace(one.place, rank=1, world=2)
    state.restore(one, saved)
    assert torch.rand(1).item() == drawn
    one.place = replace(one.place, rank=2, world=3)  # a rank the saved run did not have
    state.restore(one, saved)
    fresh = torch.rand(1).item()
    state.restore(one, saved)
    assert torch.rand(1).item() == fresh != drawn


def test_a_step_that_is_not_finite_is_skipped_and_the_state_can_still_be_saved(make_engine):
    one = make_engine()
    one.step()
    weights = [p.detach().clone() for p in one.parameters]
    loss = one.position.loss
    whole = one.loss_of
    one.loss_of = lambda batch, **more: whole(batch, **more) * float("nan")
    stats = one_step(one)
    assert stats.skipped
    assert all(torch.equal(a, b) for a, b in zip(weights, one.parameters, strict=True))
    assert one.position.loss == loss
    keeps(state.snapshot(one))


def test_looking_inside_and_validating_draw_nothing_and_change_nothing(make_engine):
    one = make_engine()
    one.step()
    before = state.snapshot(one)
    assert one.observer.after(0, torch.zeros(16, dtype=torch.int64))
    one.evaluate()
    after = state.snapshot(one)
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)
