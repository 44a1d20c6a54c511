"""What a lineage validates at: its weights, and the mean of its recent ones, whatever else is expected."""

import math

import pytest
import torch

from forkcast_trainer import state
from forkcast_trainer.course import DIVERGED_STEPS, MEAN_WEIGHTS, Course


def mean_of(engine, copies):
    """Validation loss of the mean of copies of the weights."""
    kept = [p.detach().clone() for p in engine.parameters]
    with torch.no_grad():
        for parameter, each in zip(engine.parameters, zip(*copies, strict=True), strict=True):
            parameter.copy_(torch.stack(each).double().mean(0))
        loss = engine.evaluate()
        for parameter, weight in zip(engine.parameters, kept, strict=True):
            parameter.copy_(weight)
    return loss


def test_the_mean_is_that_of_the_last_25_weights_or_of_half_the_steps(make_engine):
    """Also if the steps before two of them are partly the same."""
    engine = make_engine()
    engine.step()
    course, copies = Course(engine), []
    targets = [11, 56, 61]  # 10, 55 and 60 steps from the base
    for target in targets:
        course.expect(target)
    counts = []
    for _ in range(60):
        course.step()
        copies.append([p.detach().clone() for p in engine.parameters])
        if course.expected:
            counts.append(engine.position.step)
            count = min(MEAN_WEIGHTS, len(copies) // 2)
            raw, mean = course.validate()
            assert raw == engine.evaluate()
            assert mean == pytest.approx(mean_of(engine, copies[-count:]), rel=1e-5)
            assert mean != raw
    assert counts == targets


def test_validating_changes_nothing(make_engine):
    engine = make_engine()
    course = Course(engine)
    course.run_to(4)
    before = state.snapshot(engine)
    course.validate()
    after = state.snapshot(engine)
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)
    assert after.meta == before.meta
    assert not course.expected


@pytest.mark.parametrize(("factor", "steps"), [(math.nan, 0), (100.0, DIVERGED_STEPS)])
def test_a_lineage_that_diverges_ends_there_and_has_no_validation(make_engine, factor, steps):
    engine = make_engine()
    engine.step()
    course, whole = Course(engine), engine.loss_of
    engine.loss_of = lambda batch, **more: whole(batch, **more) * factor
    course.run_to(40)
    assert course.diverged
    assert len(course.rows) == steps  # those with a finite loss
    assert all(math.isnan(loss) for loss in course.validate())
    course.run_to(50)
    assert len(course.rows) == steps


def test_weights_summed_for_a_validation_that_is_not_taken_are_let_go(make_engine):
    """A rung that a former process of the rollout has measured is passed over."""
    engine = make_engine()
    course = Course(engine)
    course.run_to(4)
    assert course.expected
    course.run_to(8)
    assert list(course._means) == [8]
