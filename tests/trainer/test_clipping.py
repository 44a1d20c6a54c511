"""Every clipping policy keeps the contract of the shelf; each one's own formula has its figures."""

import json
import math

import pytest
import torch

from forkcast_trainer.clipping import CLIPPING, ClipContext, make
from forkcast_trainer.clipping.arc import threshold
from forkcast_trainer.clipping.spam import rewarm_scale

MICRO = 4


class Toy:
    """Two tensors under AdamW, with gradients drawn from a seed and a spike now and then."""

    def __init__(self, policy, params=None, lr=1e-3):
        torch.manual_seed(3)
        self.parameters = [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.ones(4))]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.95))
        self.lr, self.policy = lr, make(policy, params or {}, micro_batches=MICRO)

    def gradients(self, step):
        generator = torch.Generator().manual_seed(step)
        size = 100.0 if step % 17 == 16 else 0.1
        return [
            [torch.randn(p.shape, generator=generator) * size for p in self.parameters]
            for _ in range(MICRO)
        ]

    def step(self, step, micro=None):
        micro = self.gradients(step) if micro is None else micro
        for index, parameter in enumerate(self.parameters):
            parameter.grad = sum(one[index] for one in micro) / len(micro)
        scale = self.policy.rate_scale(step)
        result = self.policy.clip(self.parameters, ClipContext(step, self.optimizer, micro))
        if not result.skip:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * scale
            self.optimizer.step()
        return result

    def grad_norm(self):
        return float(torch.cat([p.grad.flatten() for p in self.parameters]).norm())


@pytest.mark.parametrize("name", CLIPPING)
def test_norms_are_float32_and_those_of_the_gradient(name):
    toy = Toy(name)
    for step in range(40):
        before = toy.gradients(step)
        mean = torch.cat([(sum(p) / MICRO).flatten() for p in zip(*before, strict=True)])
        result = toy.step(step, before)
        assert result.norm.dtype is torch.float32
        assert float(result.norm) == pytest.approx(float(mean.norm()), rel=1e-5)
        assert float(result.clipped_norm) == pytest.approx(toy.grad_norm(), rel=1e-4)
        assert not result.skip


@pytest.mark.parametrize("name", [name for name in CLIPPING if name != "None"])
def test_a_spike_is_held_to_the_constant_clip(name):
    toy = Toy(name)
    for step in range(40):
        toy.step(step)
        assert toy.grad_norm() <= 1.0 + 1e-4


@pytest.mark.parametrize("name", CLIPPING)
@pytest.mark.parametrize("at", [5, 37])
def test_a_restart_in_the_middle_changes_no_bit(name, at):
    params = {"resetEverySteps": 30.0} if name == "SPAM" else {}
    whole, first, second = Toy(name, params), Toy(name, params), Toy(name, params)
    for step in range(60):
        whole.step(step)
    for step in range(at):
        first.step(step)
    second.policy.load_state_dict(json.loads(json.dumps(first.policy.state_dict())))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for mine, theirs in zip(second.parameters, first.parameters, strict=True):
        mine.data.copy_(theirs.data)
    for step in range(at, 60):
        second.step(step)
    for mine, theirs in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert second.policy.state_dict() == whole.policy.state_dict()


def _learnt(policy):
    """Its memory but for the steps that SPAM counts: whether one is refused, the device alone knows."""
    return {name: value for name, value in policy.state_dict().items() if name != "since_reset"}


@pytest.mark.parametrize("name", CLIPPING)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_is_refused_and_teaches_nothing(name, value):
    toy = Toy(name)
    for step in range(30):
        toy.step(step)
    before = _learnt(toy.policy)
    weights = [p.detach().clone() for p in toy.parameters]
    bad = toy.gradients(30)
    for micro in bad:
        micro[0][2, 1] = value
    assert toy.step(30, bad).skip
    assert _learnt(toy.policy) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, toy.parameters, strict=True))
    assert not toy.step(31).skip
    assert math.isfinite(toy.grad_norm())


@pytest.mark.parametrize("name", CLIPPING)
def test_an_unknown_parameter_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown zThreshhold") as caught:
        make(name, {"zThreshhold": 2.0}, micro_batches=MICRO)
    assert all(known in str(caught.value) for known in CLIPPING[name].takes)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Norm", {"maxNorm": 0.0}),
        ("Norm", {"maxNorm": -1.0}),
        ("Norm", {"maxNorm": math.nan}),
        ("ZClip", {"decay": 1.0}),
        ("ZClip", {"warmupSteps": 0.0}),
        ("ZClip", {"warmupSteps": 25.5}),
        ("ZClip", {"zThreshold": 0.0}),
        ("ARC", {"faulty": 0.5}),
        ("ARC", {"faulty": 2.0}),
        ("SPAM", {"theta": 0.0}),
        ("SPAM", {"resetEverySteps": -1.0}),
        ("SPAM", {"rewarmSteps": 0.0}),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, params):
    with pytest.raises(ValueError, match=next(iter(params))):
        make(name, params, micro_batches=MICRO)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="AGC; one of None, Norm, ZClip, ARC, SPAM"):
        make("AGC", {}, micro_batches=MICRO)


def clipped(policy, norm, step=0):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([0.6, 0.8]) * norm
    optimizer = torch.optim.AdamW([parameter])
    policy.clip([parameter], ClipContext(step, optimizer))
    return float(parameter.grad.norm())


def test_zclip_by_hand():
    """Norms 1, 3: mean 2, variance 1. Then 7: z = 5, target 2 + 6.25 / 5 = 3.25; the mean goes to
    .5 x 2 + .5 x 3.25 = 2.625 and the variance to .5 x 1 + .5 x 1.25^2 = 1.28125.
    """
    policy = make(
        "ZClip", {"warmupSteps": 2.0, "decay": 0.5, "maxNorm": 100.0}, micro_batches=MICRO
    )
    assert clipped(policy, 1.0) == pytest.approx(1.0)
    assert clipped(policy, 3.0) == pytest.approx(3.0)
    assert clipped(policy, 7.0) == pytest.approx(3.25, rel=1e-5)
    state = policy.state_dict()
    assert state["mean"] == pytest.approx(2.625, rel=1e-5)
    assert state["variance"] == pytest.approx(1.28125, rel=1e-5)
    # z = (5 - 2.625) / 1.13192 = 2.098: under the threshold, untouched
    assert clipped(policy, 5.0) == pytest.approx(5.0)


def test_zclips_warm_up_learns_nothing_from_a_spike():
    policy = make("ZClip", {"warmupSteps": 3.0}, micro_batches=MICRO)
    for norm in (0.4, 1000.0, 0.6):
        assert clipped(policy, norm) <= 1.0
    assert policy.state_dict()["buffer"] == pytest.approx([0.4, 1.0, 0.6])


@pytest.mark.parametrize(
    ("n", "faulty", "k"),
    [(4, 1, 1), (8, 1, 1), (8, 2, 3), (16, 2, 3), (5, 0, 0), (9, 3, 4)],
)
def test_arc_clips_to_the_k_plus_first_largest_norm(n, faulty, k):
    norms = torch.tensor([math.nan, *(float(x) for x in range(1, n + 1))])
    assert threshold(norms, torch.tensor(n), torch.tensor(faulty)) == n - k


def arc(values, params=None):
    policy = make("ARC", {"maxNorm": 100.0, **(params or {})}, micro_batches=len(values))
    parameter = torch.nn.Parameter(torch.zeros(1))
    micro = [[torch.tensor([value])] for value in values]
    parameter.grad = torch.tensor([sum(values) / len(values)])
    optimizer = torch.optim.AdamW([parameter])
    return policy.clip([parameter], ClipContext(0, optimizer, micro)), float(parameter.grad)


def test_arc_by_hand():
    """n = 4, f = 1: k = 1, C = 3: the mean of 1, 2, 3 and 90 cut to 3."""
    result, gradient = arc([1.0, 2.0, -3.0, 90.0])
    assert gradient == pytest.approx((1 + 2 - 3 + 3) / 4)
    assert float(result.norm) == pytest.approx(22.5)
    assert float(result.clipped_norm) == pytest.approx(0.75)


def test_arc_drops_a_non_finite_micro_batch_and_keeps_the_step():
    """Of 1, 2, 3: n = 3, k = floor(2/3 x 2) = 1, C = 2: the mean of 1, 2 and 3 cut to 2."""
    result, gradient = arc([1.0, math.nan, 2.0, 3.0])
    assert not result.skip
    assert gradient == pytest.approx(5 / 3)
    assert float(result.norm) == pytest.approx(2.0)


def test_arc_refuses_a_step_with_fewer_than_three_finite_micro_batches():
    result, _ = arc([1.0, math.nan, 2.0, math.inf])
    assert result.skip


@pytest.mark.parametrize("count", [1, 2])
def test_arc_refuses_a_run_with_fewer_than_three_micro_batches(count):
    with pytest.raises(ValueError, match=f"got {count}; raise it, or use ZClip"):
        make("ARC", {}, micro_batches=count)


def test_spam_cuts_the_spiked_coordinate_alone():
    toy = Toy("SPAM", {"theta": 4.0, "maxNorm": 1e6})
    for step in range(25):
        if step % 17 != 16:
            toy.step(step)
    moment = toy.optimizer.state[toy.parameters[1]]["exp_avg_sq"].clone()
    micro = [[torch.zeros(6, 4), torch.tensor([0.0, -50.0, 0.0, 0.001])]] * MICRO
    toy.step(25, micro)
    cut = toy.parameters[1].grad
    assert float(cut[1]) == pytest.approx(-2 * float(moment[1].sqrt()), rel=1e-5)
    assert cut[[0, 2, 3]].tolist() == pytest.approx([0.0, 0.0, 0.001])


def test_spam_does_not_test_for_spikes_right_after_anybodys_reset():
    toy = Toy("SPAM", {"theta": 4.0, "maxNorm": 1e6})
    for step in range(25):
        toy.step(step)
    for state in toy.optimizer.state.values():
        for value in state.values():
            value.zero_()
    toy.step(26)
    micro = [[torch.zeros(6, 4), torch.tensor([0.0, -50.0, 0.0, 0.0])]] * MICRO
    toy.step(27, micro)
    assert float(toy.parameters[1].grad[1]) == -50.0


def test_spams_reset_restarts_the_counters_and_its_very_step_is_warmed_up():
    """Right after a reset Adam moves every coordinate by the whole rate; only the re-warm-up,
    applied from that step on, makes it small.
    """
    toy = Toy("SPAM", {"resetEverySteps": 10.0})
    moves = []
    for step in range(12):
        before = [p.detach().clone() for p in toy.parameters]
        toy.step(step)
        moved = zip(before, toy.parameters, strict=True)
        moves.append(max(float((a - b.detach()).abs().max()) for a, b in moved))
    assert float(toy.optimizer.state[toy.parameters[0]]["step"]) == 2
    assert max(moves[:10]) > 5e-4
    assert moves[10] < 3e-5  # .0101 of the rate, and the weight decay's share of it
    assert moves[11] < 3e-5


def test_the_re_warm_up_rises_to_one_in_its_own_number_of_steps():
    scales = [rewarm_scale(step, 150) for step in range(151)]
    assert scales[0] == pytest.approx(0.01, abs=2e-4)
    assert scales == sorted(scales)
    assert scales[149] == scales[150] == 1.0
