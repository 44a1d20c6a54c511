"""The head's loss in chunks is the cross-entropy of the full logits, with every gradient."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from forkcast_trainer import logit_chunks
from forkcast_trainer.logit_chunks import chunk_rows, padded
from forkcast_trainer.models import Head
from forkcast_trainer.objectives import IGNORED, head_loss, logits_loss

#: Largest deviation from float64, relative to the largest entry: of the value, and of a gradient.
#: float32 is 24 bits, bfloat16 8, float16 11.
TOLERANCE = {
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 4e-3),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks even here."""
    monkeypatch.setattr(logit_chunks, "_MOST_ELSEWHERE", 1)
    monkeypatch.setattr(logit_chunks, "_ROWS", 8)


def made(rows, width, vocabulary, seed, *, bias, share):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < share] = IGNORED
    targets[0] = vocabulary - 1  # the column beside the padding
    offset = torch.randn(vocabulary, generator=generator) if bias else None
    return hidden, weight, offset, targets


def plain(parts, targets, z_loss, dtype):
    """In float64, of what the product's dtype leaves of its factors."""
    leaves = [None if p is None else p.to(dtype).double().requires_grad_() for p in parts]
    logits = functional.linear(*leaves)
    value = functional.cross_entropy(logits, targets)
    log_z = logits.logsumexp(-1)
    kept = targets != IGNORED
    (value + z_loss * (log_z[kept] ** 2).mean()).backward()
    return value, log_z, [None if one is None else one.grad for one in leaves]


def chunked(parts, targets, z_loss, dtype, scale=1.0):
    hidden, weight, bias = (None if p is None else p.clone().requires_grad_() for p in parts)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
        loss = head_loss(hidden, Head(weight, bias), targets, z_loss=z_loss)
    (loss.value * scale).backward()
    grads = [None if one is None else one.grad.double() / scale for one in (hidden, weight, bias)]
    return loss, grads


def distance(ours, theirs):
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    rows=st.integers(1, 40),
    width=st.sampled_from([1, 8, 33]),
    vocabulary=st.sampled_from([2, 63, 64, 65, 257]),
    bias=st.booleans(),
    z_loss=st.sampled_from([0.0, 1e-4, 0.1]),
    share=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_it_is_cross_entropy_of_the_full_logits_with_every_gradient(
    dtype, rows, width, vocabulary, bias, z_loss, share, seed
):
    *parts, targets = made(rows, width, vocabulary, seed, bias=bias, share=share)
    value, log_z, grads = plain(parts, targets, z_loss, dtype)
    loss, ours = chunked(parts, targets, z_loss, dtype)
    near, near_gradient = TOLERANCE[dtype]
    assert abs(loss.value.item() - value.item()) <= near * max(1, value.item())
    assert distance(loss.log_z, log_z) <= near
    assert not loss.log_z.requires_grad
    for mine, theirs in zip(ours, grads, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            assert distance(mine, theirs) <= near_gradient


def test_a_loss_scale_goes_through_to_the_bit():
    *parts, targets = made(20, 16, 257, 3, bias=False, share=0)
    scaled = chunked(parts, targets, 0.0, torch.float16, scale=2.0**16)[1]
    alone = chunked(parts, targets, 0.0, torch.float16)[1]
    assert all(torch.equal(a, b) for a, b in zip(scaled[:2], alone[:2], strict=True))


def test_small_gradients_live_under_fp16_without_a_loss_scale():
    """The mean over many rows is below fp16's least number: it is taken in float32."""
    *parts, targets = made(2048, 16, 64, 3, bias=False, share=0)
    _, _, grads = plain(parts, targets, 0.0, torch.float16)
    _, ours = chunked(parts, targets, 0.0, torch.float16)
    assert distance(ours[0], grads[0]) <= TOLERANCE[torch.float16][1]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_value_is_the_cross_entropy_alone_whatever_z_loss(z_loss):
    hidden, weight, _, targets = made(20, 16, 65, 1, bias=False, share=0.3)
    expected = functional.cross_entropy(hidden @ weight.t(), targets).item()
    assert head_loss(hidden, Head(weight), targets, z_loss=z_loss).value.item() == pytest.approx(
        expected, rel=1e-5
    )
    logits = hidden @ weight.t()
    assert logits_loss(logits, targets, z_loss=z_loss).value.item() == pytest.approx(expected)


def test_a_head_that_is_more_than_a_product_gets_the_same_loss_and_gradient():
    *parts, targets = made(20, 16, 65, 1, bias=True, share=0.3)
    value, log_z, grads = plain(parts, targets, 0.1, torch.float32)
    hidden, weight, bias = (one.clone().requires_grad_() for one in parts)
    loss = logits_loss(functional.linear(hidden, weight, bias), targets, z_loss=0.1)
    loss.value.backward()
    assert loss.value.item() == pytest.approx(value.item(), rel=1e-5)
    assert distance(loss.log_z, log_z) <= 1e-5
    assert distance(hidden.grad, grads[0]) <= 1e-5
    assert distance(weight.grad, grads[1]) <= 1e-5


def test_padded_columns_take_no_probability_whatever_the_logits():
    """All true logits far below zero: a padded column at 0 would take everything."""
    hidden = torch.ones(4, 1)
    weight = torch.full((3, 1), -1000.0, requires_grad=True)
    loss = head_loss(hidden, Head(weight), torch.tensor([0, 1, 2, 0]))
    assert loss.value.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-3)
    loss.value.backward()
    assert weight.grad.shape == (3, 1)


def test_rows_without_a_target_alone_have_no_loss_and_no_gradient():
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = head_loss(hidden, Head(torch.randn(5, 8)), torch.full((4,), IGNORED))
    loss.value.backward()
    assert loss.value.item() == 0
    assert not hidden.grad.any()


def test_nothing_is_kept_for_a_gradient_that_nobody_wants():
    hidden, weight, _, targets = made(20, 16, 65, 1, bias=False, share=0)
    weight.requires_grad_()
    with torch.no_grad():
        value = head_loss(hidden, Head(weight), targets).value
    assert value.grad_fn is None


def test_a_logit_that_is_not_finite_makes_the_loss_not_finite():
    hidden, weight, _, targets = made(20, 16, 65, 1, bias=False, share=0)
    hidden[3, 3] = torch.inf
    assert not head_loss(hidden, Head(weight), targets).value.isfinite()


def test_what_is_compiled_is_what_is_run_eagerly():
    *parts, targets = made(20, 16, 65, 1, bias=False, share=0.3)
    found = []
    for fused in (False, True):
        hidden, weight = (one.clone().requires_grad_() for one in parts[:2])
        loss = head_loss(hidden, Head(weight), targets, z_loss=0.1, fused=fused)
        loss.value.backward()
        found.append((loss.value, loss.log_z, hidden.grad, weight.grad))
    for eager, compiled in zip(*found, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_stands_behind_checkpointed_blocks_of_a_tied_model(reentrant):
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    embedding = torch.nn.Embedding(65, 16)
    block = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU())
    ids, targets = torch.randint(65, (2, 3, 7))
    grads = []
    for ours in (True, False):
        model = copy.deepcopy(torch.nn.ModuleList([embedding, block]))
        hidden = checkpoint(model[1], model[0](ids), use_reentrant=reentrant)
        if ours:
            head_loss(hidden, Head(model[0].weight), targets).value.backward()
        else:
            logits = hidden @ model[0].weight.t()
            functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        grads.append([p.grad for p in model.parameters()])
    for mine, theirs in zip(*grads, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_the_backward_pass_may_be_taken_twice():
    *parts, targets = made(20, 16, 65, 1, bias=False, share=0)
    hidden = parts[0].requires_grad_()
    loss = head_loss(hidden, Head(parts[1]), targets)
    loss.value.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.value.backward()
    assert torch.equal(hidden.grad, 2 * once)


@given(rows=st.integers(0, 1 << 20), vocabulary=st.integers(1, 300_000))
def test_chunks_cover_the_rows_and_stay_within_their_bound(rows, vocabulary):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_chunks, "_MOST_ELSEWHERE", 1 << 25)
        patch.setattr(logit_chunks, "_ROWS", 128)
        size = chunk_rows(rows, vocabulary, "cpu")
        most = max((1 << 25) // padded(vocabulary), 128)
    assert 1 <= size <= max(rows, 1)
    assert size <= most + 127
    assert padded(vocabulary) % 64 == 0 <= padded(vocabulary) - vocabulary < 64
