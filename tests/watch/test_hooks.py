"""What the hooks see of a step, against what the step was: torch alone, no monitor."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from forkcast.parameter_groups import group_of
from forkcast_trainer.measure.late import LateReader, _Pack
from forkcast_watch.gradients import Gradients, clip_factor
from forkcast_watch.inside import Inside
from forkcast_watch.tolerance import Tolerance
from tests.watch.toys import HEADS, WIDTH, Toy, batch


def hooked(model, optimizer, scaler=None):
    named = {p: name for name, p in model.named_parameters()}
    made = Gradients(named, optimizer, scaler, Tolerance())
    made.sampled = True
    return made


def numbers(gradients):
    taken = gradients.taken()
    values = taken.values | gradients.last()
    return {name: float(value) for name, value in values.items()}, taken.stepped


def norm_of(model):
    return float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy()


def test_the_norm_before_clipping_and_after_are_those_of_the_gradients(toy):
    optimizer = torch.optim.AdamW(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        before = norm_of(toy)
        nn.utils.clip_grad_norm_(toy.parameters(), 0.1)
        optimizer.step()
        seen, stepped = numbers(gradients)
        assert stepped
        assert seen["grad_norm"] == pytest.approx(before)
        assert seen["grad_norm_clipped"] == pytest.approx(0.1, rel=1e-4)
        by_group = [value for name, value in seen.items() if name.startswith("norm:")]
        assert math.hypot(*by_group) == pytest.approx(0.1, rel=1e-4)
        assert seen["learning_rate"] == 1e-3


@pytest.mark.parametrize("largest", [0.1, 1e3])
def test_the_norm_that_the_loops_own_clipping_tells_is_not_measured_again(toy, largest):
    optimizer = torch.optim.AdamW(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)
    measured = []
    take = gradients._take_norms
    gradients._take_norms = lambda: measured.append(1) or take()
    for step in range(4):
        gradients.sampled = step != 2
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        before = norm_of(toy)
        second = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in optimizer.state}
        gradients.clipped(nn.utils.clip_grad_norm_(toy.parameters(), largest), largest)
        after = norm_of(toy)
        optimizer.step()
        seen, _ = numbers(gradients)
        assert seen["grad_norm"] == pytest.approx(before)
        clipped = seen["grad_norm"] * clip_factor(seen["grad_norm"], seen["clip_at"])
        assert clipped == pytest.approx(after)
        if not gradients.sampled:
            continue
        by_group = [value for name, value in seen.items() if name.startswith("norm:")]
        assert math.hypot(*by_group) == pytest.approx(after, rel=1e-4)
        if second:
            rms = [(p.grad**2 / v.clamp_min(1e-16)).mean().sqrt() for p, v in second.items()]
            assert seen["rms_max"] == pytest.approx(float(torch.stack(rms).max()), rel=1e-4)
    assert len(measured) == 3  # once in each sampled step, in none of the others


def test_a_loop_that_stops_to_tell_its_clipping_is_measured_again(toy):
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)
    gradients.sampled = False
    for step in range(4):
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        total = nn.utils.clip_grad_norm_(toy.parameters(), 1e-2)
        if step == 0:
            gradients.clipped(total, 1e-2)
        optimizer.step()
        seen, _ = numbers(gradients)
        if step:
            assert seen["grad_norm_clipped"] == pytest.approx(1e-2, rel=1e-4)
        if step != 1:  # the first without was not foreseen
            assert seen["grad_norm"] == pytest.approx(float(total))


def test_what_no_number_comes_before_clipping_of_is_none_after_it():
    for total in (math.inf, math.nan):
        assert math.isnan(total * clip_factor(total, 1.0))
        assert torch.isnan(torch.tensor(total) * clip_factor(torch.tensor(total), 1.0))


def test_with_accumulation_the_norm_is_of_the_whole_step_whatever_its_length(toy):
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)
    for step, count in enumerate((3, 3, 1, 4, 4)):
        optimizer.zero_grad()
        for micro in range(count):
            (toy.loss(batch(10 * step + micro)) / count).backward()
        before = norm_of(toy)
        optimizer.step()
        assert numbers(gradients)[0]["grad_norm"] == pytest.approx(before)


def test_a_step_without_the_parameter_whose_gradient_comes_last_is_measured_again_after_it(toy):
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)
    for step in range(6):
        toy.wte.requires_grad_(step not in (2, 3))
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        nn.utils.clip_grad_norm_(toy.parameters(), 1e-3)
        optimizer.step()
        seen, _ = numbers(gradients)
        if step in (0, 1, 5):
            assert seen["grad_norm"] > 1e-2
        assert seen["grad_norm_clipped"] == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_of_what_is_seen(toy, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Saving(Toy):
        def forward(self, ids):
            x = self.wte(ids)
            for block in self.h:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.lm_head(x)

    saving = Saving()
    saving.load_state_dict(toy.state_dict())
    optimizer = torch.optim.SGD(saving.parameters(), lr=1e-3)
    gradients = hooked(saving, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        saving.loss(batch(step)).backward()
        before = norm_of(saving)
        nn.utils.clip_grad_norm_(saving.parameters(), 1e-3)
        optimizer.step()
        assert numbers(gradients)[0]["grad_norm"] == pytest.approx(before)


def test_the_scale_of_a_loss_scaler_is_divided_out_and_a_step_it_leaves_out_is_seen(toy):
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    gradients = hooked(toy, optimizer, scaler)
    for step in range(3):
        optimizer.zero_grad()
        loss = toy.loss(batch(step)) * (math.inf if step == 1 else 1)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        true = norm_of(toy)
        nn.utils.clip_grad_norm_(toy.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
        seen, stepped = numbers(gradients)
        assert stepped is (step != 1)
        if stepped:
            assert seen["grad_norm"] == pytest.approx(true)
            assert seen["grad_norm_clipped"] == pytest.approx(1e-3, rel=1e-4)
        else:
            assert not math.isfinite(seen["grad_norm"])


def test_a_closure_is_called_as_before_and_its_gradients_are_those_of_the_step(toy):
    optimizer = torch.optim.AdamW(toy.parameters(), lr=1e-3)
    gradients = hooked(toy, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = toy.loss(batch(0))
        loss.backward()
        nn.utils.clip_grad_norm_(toy.parameters(), 1e-2)
        return loss

    assert torch.is_tensor(optimizer.step(closure))
    seen, _ = numbers(gradients)
    assert seen["grad_norm"] > 1e-2
    assert seen["grad_norm_clipped"] == pytest.approx(1e-2, rel=1e-4)
    optimizer.step(closure=closure)
    assert numbers(gradients)[0]["grad_norm_clipped"] == pytest.approx(1e-2, rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_update_ratio_and_rms_are_those_of_the_step_that_was_taken(toy, kind, decay):
    optimizer = kind(toy.parameters(), lr=1e-3, weight_decay=decay)
    gradients = hooked(toy, optimizer)
    for step in range(4):
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        before = copy.deepcopy(toy)
        second = {p: optimizer.state[p]["exp_avg_sq"].clone() for p in optimizer.state}
        optimizer.step()
        pairs = list(zip(before.parameters(), toy.parameters(), strict=True))
        moved = torch.cat([(new - old).detach().flatten() for old, new in pairs]).norm()
        size = torch.cat([old.flatten() for old, _ in pairs]).norm()
        seen, _ = numbers(gradients)
        assert seen["update_ratio"] == pytest.approx(float((moved / size).detach()), rel=1e-2)
        if second:
            rms = [(p.grad**2 / v.clamp_min(1e-16)).mean().sqrt() for p, v in second.items()]
            assert seen["rms_max"] == pytest.approx(float(torch.stack(rms).max()), rel=1e-4)
        else:
            assert "rms_max" not in seen


def test_a_norm_of_half_precision_gradients_is_summed_in_full(toy):
    half = toy.bfloat16()
    optimizer = torch.optim.SGD(half.parameters(), lr=1e-3)
    gradients = hooked(half, optimizer)
    half.loss(batch(0)).backward()
    true = float(torch.cat([p.grad.flatten().double() for p in half.parameters()]).norm())
    optimizer.step()
    assert numbers(gradients)[0]["grad_norm"] == pytest.approx(true, rel=1e-5)


def test_a_piece_that_fails_is_left_out_and_the_step_is_taken(toy, caplog):
    toy.wte = nn.Embedding(32, WIDTH, sparse=True)  # its gradient has no foreach norm
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.5)
    before = toy.wte.weight.detach().clone()
    gradients = hooked(toy, optimizer)
    for step in range(2):
        optimizer.zero_grad()
        toy.loss(batch(step)).backward()
        optimizer.step()
        numbers(gradients)
    assert not torch.equal(before, toy.wte.weight)
    assert caplog.text.count("not measured from here on") <= 2


def test_removed_hooks_are_gone(toy):
    optimizer = torch.optim.AdamW(toy.parameters())
    gradients, inside = hooked(toy, optimizer), Inside(toy, Tolerance(), called=True)
    gradients.remove()
    inside.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for p in toy.parameters():
        assert not p._post_accumulate_grad_hooks
    for module in toy.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_attention_is_what_the_model_computes_and_the_forward_pass_is_the_same(toy):
    toy.eval()
    toy.train()
    for block in toy.h:
        block.drop.p = 0.0
    ids = batch(0)[:, :-1]
    plain = toy(ids)
    inside = Inside(toy, Tolerance(), called=True)
    inside.sampled = True
    assert torch.equal(toy(ids), plain)
    seen = {name: float(value) for name, value in inside.taken().items()}
    block, x = toy.h[0], toy.wte(ids)
    q, k, _ = (
        one[0].view(-1, HEADS, WIDTH // HEADS).transpose(0, 1)
        for one in block.attn(block.ln_1(x)).split(WIDTH, 2)
    )
    logits = q @ k.transpose(1, 2) / math.sqrt(WIDTH // HEADS)
    hidden = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    p = logits.masked_fill(hidden, -math.inf).softmax(-1)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)[:, 1:]
    visible = torch.arange(2, logits.shape[1] + 1).float().log()
    assert seen["attention_entropy:0"] == pytest.approx(
        float((entropy / visible).mean().detach()), rel=1e-4
    )
    assert seen["attention_logit_max"] >= float(logits.masked_fill(hidden, -math.inf).max()) - 1e-5
    assert seen["activation_sd:1"] > 0
    inside.remove()


def test_evaluation_is_not_sampled(toy):
    inside = Inside(toy, Tolerance(), called=True)
    inside.sampled = True
    toy.eval()
    toy(batch(0)[:, :-1])
    toy.train()
    with torch.no_grad():
        toy(batch(0)[:, :-1])
    assert not inside.taken()


def test_a_forward_pass_that_raises_leaves_no_mode_behind(toy):
    inside = Inside(toy, Tolerance(), called=True)
    inside.sampled = True
    with pytest.raises(IndexError):
        toy(torch.full((1, 3), 1000))
    from torch.overrides import _get_current_function_mode_stack

    assert not _get_current_function_mode_stack()
    assert not toy.h[0]._forward_hooks


class Reads(TorchFunctionMode):
    """Refuses what brings a value to the host, asked for by the code that watches. On a GPU each would wait
    for all that is queued there.
    """

    WATCHING = ("forkcast_watch", "forkcast_trainer/measure")
    READS = ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__", "__index__")

    def __init__(self, allowed):
        super().__init__()
        self.allowed, self.found = allowed, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.READS and not any(args[0] is one for one in self.allowed()):
            frame = sys._getframe(1)
            if any(one in frame.f_code.co_filename for one in self.WATCHING):
                self.found.append(f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


def test_no_value_is_brought_to_the_host_before_it_is_read_late(toy):
    optimizer = torch.optim.AdamW(toy.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    gradients, inside = hooked(toy, optimizer, scaler), Inside(toy, Tolerance(), called=True)
    # Adam's count of steps is a number of the host's
    reads = Reads(lambda: [state["step"] for state in optimizer.state.values()])
    with reads:
        for step in range(3):
            inside.sampled = True
            scaler.scale(toy.loss(batch(step))).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(toy.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            values = gradients.taken().values | gradients.last()
            values |= inside.taken()
    assert reads.found == []
    assert {"grad_norm", "rms_max", "update_ratio", "attention_logit_max"} <= set(values)


def test_a_read_in_the_code_that_watches_would_be_seen():
    from forkcast_trainer.measure.late import LateReader

    with Reads(list) as reads:
        LateReader().put(0, {"loss": torch.tensor(1.0)})  # on the CPU it is read at once
    assert len(reads.found) == 1


def test_values_come_back_with_their_steps_in_order():
    late = LateReader()
    for step in range(4):
        late.put(step, {"loss": torch.tensor(float(step)), "rate": 0.5})
    assert late.newest() == 3
    assert late.take() == [(step, {"loss": float(step), "rate": 0.5}) for step in range(4)]
    assert late.newest() is None


def test_values_that_are_added_come_with_the_step_that_was_put_last():
    late = LateReader()
    late.add({"nobody": 1.0})
    late.put(0, {"loss": torch.tensor(1.0)})
    late.add({"update_ratio": torch.tensor(0.5)})
    late.put(1, {"loss": 2.0})
    assert late.take() == [(0, {"loss": 1.0, "update_ratio": 0.5}), (1, {"loss": 2.0})]


def test_values_on_a_device_wait_until_they_have_been_sent():
    class There(LateReader):
        """As on a device whose copies are there at once."""

        def _sent(self, names, tensors):
            return _Pack(names, torch.stack(tensors), None)

    late = There()
    value = torch.tensor(1.0)
    for step in range(4):
        late.put(step, {"rate": 0.5})
        late._waiting[-1].unsent = {"loss": value + step}  # what `add` does for a device
        if step == 3:  # the device has no events: what was sent two steps ago is there
            assert [what for what, _ in late.take()] == [0, 1]
    assert late.take(everything=True) == [
        (step, {"rate": 0.5, "loss": 1.0 + step}) for step in (2, 3)
    ]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("transformer.wte.weight", "embedding"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("layers.0.attention.wq.weight", "attention"),
        ("model.layers.0.mlp.down_proj.weight", "mlp"),
        ("layers.0.feed_forward.w1.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", "mlp"),
        ("score.bias", "other"),
    ],
)
def test_parameters_are_grouped_by_the_names_of_known_families(name, group):
    assert group_of(name) == group
