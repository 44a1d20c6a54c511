"""Half precision on whatever device there is: close to float32, its loss scale survives a restart,
and an overflow costs one step.
"""

import pytest
import torch

from forkcast_trainer import state
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import TrainingRun
from tests.one_step import one_step


@pytest.fixture
def engine(tiny, tmp_path):
    def make(dtype, policy="Norm", device="Cpu"):
        document = tiny(dropout="0", gradientAccumulationSteps=4).document()
        document["spec"]["model"] |= {"dtype": dtype, "device": device}
        document["spec"]["optimizer"]["clipping"] = {"policy": policy}
        spec = TrainingRun.model_validate(document).spec
        return Engine(spec, "u", tmp_path, placement(spec))

    return make


@pytest.mark.parametrize("policy", ["Norm", "ARC"])
@pytest.mark.parametrize(("dtype", "close"), [("BFloat16", 2e-2), ("Float16", 3e-3)])
def test_half_precision_trains_like_float32(engine, dtype, close, policy):
    """The gradient's norms are those of the unscaled gradient, micro-batch by micro-batch, too."""
    half, full = engine(dtype, policy), engine("Float32", policy)
    assert half.place.dtype is getattr(torch, dtype.lower())
    assert all(p.dtype is torch.float32 for p in half.parameters)
    for _ in range(4):
        ours, theirs = one_step(half), one_step(full)
        assert ours.loss == pytest.approx(theirs.loss, rel=close)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=5 * close)
        assert ours.grad_norm_clipped == pytest.approx(theirs.grad_norm_clipped, rel=5 * close)
        assert not ours.skipped
    assert half.evaluate() == pytest.approx(full.evaluate(), rel=close)


@pytest.mark.parametrize("policy", ["Norm", "ARC"])
def test_an_overflow_costs_a_step_and_halves_the_scale(engine, policy):
    one = engine("Float16", policy)
    one.step()
    before = [p.detach().clone() for p in one.parameters]
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 2.0**126})
    assert one_step(one).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters, strict=True))
    assert one.scaler.get_scale() == 2.0**125
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 2.0**10})
    assert not one_step(one).skipped


def test_the_loss_scale_survives_a_restart(engine):
    one = engine("Float16")
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 2.0**9, "_growth_tracker": 3})
    for _ in range(3):
        one.step()
    saved = state.snapshot(one)
    assert (saved.meta["scaler"]["scale"], saved.meta["scaler"]["_growth_tracker"]) == (2.0**9, 6)
    losses = [one_step(one).loss for _ in range(5)]
    other = engine("Float16")
    state.restore(other, saved)
    assert [one_step(other).loss for _ in range(5)] == losses
    assert other.scaler.state_dict() == one.scaler.state_dict()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(engine):
    assert engine("Auto", device="Auto").place.dtype is torch.float32
    with pytest.raises(TrainerError, match=r"spec\.model\.device: .* finds 0 GPUs"):
        engine("Auto", device="Cuda")
