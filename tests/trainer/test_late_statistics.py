"""Where the host runs ahead of the device, a step's statistics come a step later, and the device decides
whether an update is made. Shown on a CPU that is told to do so.
"""

import math
from dataclasses import replace

import pytest
import torch

from forkcast_trainer import state
from forkcast_trainer.clipping import CLIPPING
from forkcast_trainer.measure import moments
from forkcast_wire.manifest import Statistics

STEPS, BAD = 12, 7


@pytest.fixture
def pair(make_engine):
    """Two engines with a fused optimizer, of which the second runs ahead."""

    def make(policy):
        engines = []
        for ahead in (False, True):
            engine = make_engine(gradientAccumulationSteps=4)
            engine.actions.clipping = policy
            engine.clipping = engine.make_clipping(policy)
            for group in engine.optimizer.param_groups:
                group["fused"] = True
            engine.optimizer._step_supports_amp_scaling = True
            engine._runs_ahead = ahead
            engines.append(engine)
        return engines

    return make


def poisoned(engine, steps):
    """Take the steps; at one of them the loss is not a number. The rows as they come."""
    whole, came = engine.loss_of, []
    for _ in range(steps):
        bad = engine.position.step == BAD
        engine.loss_of = (lambda *a, **k: whole(*a, **k) * math.nan) if bad else whole
        engine.step()
        came.append(engine.told())
    return came


@pytest.mark.parametrize("policy", CLIPPING)
def test_the_rows_come_a_step_later_and_nothing_else_is_different(pair, policy):
    at_once, ahead = pair(policy)
    start = state.snapshot(at_once)
    rows = [one for (one,) in poisoned(at_once, STEPS)]
    whole = state.snapshot(at_once)
    state.restore(ahead, start)
    late = poisoned(ahead, STEPS)
    assert [len(one) for one in late] == [0] + [1] * (STEPS - 1)
    ahead.settle()
    late.append(ahead.told())
    seen = [one for each in late for one in each]
    assert str([replace(one, step_seconds=None) for one in seen]) == str(
        [replace(one, step_seconds=None) for one in rows]
    )
    assert [one.skipped for one in seen] == [step == BAD for step in range(STEPS)]
    mine, theirs = state.snapshot(ahead), whole
    assert mine.meta == theirs.meta
    assert all(torch.equal(mine.tensors[n], theirs.tensors[n]) for n in theirs.tensors)


def test_a_snapshot_and_a_restore_wait_for_what_is_on_its_way(pair):
    _, ahead = pair("ZClip")
    for _ in range(5):
        ahead.step()
    saved = state.snapshot(ahead)
    assert saved.meta["loss"] == ahead.told()[-1].loss
    ahead.step()
    state.restore(ahead, saved)
    assert not ahead.told()
    ahead.settle()
    assert not ahead.told()
    assert ahead.position.loss == saved.meta["loss"]


def test_the_cosine_and_the_ratio_are_those_of_the_update_that_was_made(make_engine):
    engine = make_engine()
    engine.observer.statistics = Statistics.model_validate({"updateEverySteps": 1})
    engine.step()
    for _ in range(4):
        before = [p.detach().clone() for p in engine.parameters]
        engine.step()
        moved = torch.cat(
            [(p.detach() - b).flatten() for p, b in zip(engine.parameters, before, strict=True)]
        )
        engine.settle()
        *_, stats = engine.told()
        size = torch.cat([b.flatten() for b in before]).norm()
        assert stats.update_ratio == pytest.approx(float(moved.norm() / size), rel=1e-2)
        last = moved
        engine.optimizer.zero_grad()
        sampler = engine.sampler.state
        engine._gradients(engine.position.step)
        engine.sampler.state = sampler
        gradient = torch.cat([p.grad.flatten() for p in engine.parameters])
        cosine = moments.cosine(engine.optimizer)
        expected = torch.nn.functional.cosine_similarity(gradient, last, dim=0)
        assert float(cosine) == pytest.approx(float(expected), abs=2e-2)


def test_after_a_reset_of_the_moments_nothing_is_divided_by_zero(make_engine):
    engine = make_engine()
    engine.step()
    for one in engine.optimizer.state.values():
        for value in one.values():
            value.zero_()
    assert abs(float(moments.cosine(engine.optimizer))) < 0.1  # that of the weight decay alone
