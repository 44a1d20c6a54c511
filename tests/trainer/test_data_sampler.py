"""Every window once a pass, in an order that three integers name."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast_trainer.data.sampler import Sampler, SamplerState, permuted

windows = st.integers(1, 700)
seeds = st.integers(0, 2**53 - 1)


@given(windows, seeds, st.integers(0, 50))
def test_a_pass_is_a_permutation(count, seed, epoch):
    taken = Sampler(count, SamplerState(seed, epoch)).take(count)
    assert sorted(taken.tolist()) == list(range(count))


@given(windows, seeds, st.integers(0, 900), st.integers(1, 60))
def test_a_restored_state_and_a_skip_both_continue_the_same_order(count, seed, before, after):
    whole = Sampler(count, SamplerState(seed))
    whole.take(before)
    restored = Sampler(count, SamplerState(**asdict(whole.state)))
    skipped = Sampler(count, SamplerState(seed))
    skipped.skip(before)
    expected = whole.take(after)
    assert np.array_equal(restored.take(after), expected)
    assert np.array_equal(skipped.take(after), expected)
    assert restored.state == whole.state


def test_the_order_is_the_one_that_saved_runs_have_begun():
    some = np.arange(4, dtype=np.uint64) * np.uint64(100)
    assert permuted(some, 500, 17, 0).tolist() == [87, 21, 132, 35]
    assert permuted(some, 500, 17, 3).tolist() == [370, 272, 25, 442]
    far = np.array([10**11], dtype=np.uint64)
    assert permuted(far, 10**12, 2**53 - 1, 50).tolist() == [14349545603]
    sampler = Sampler(500, SamplerState(17, 0, 499))
    assert sampler.take(2).tolist() == [
        *permuted(np.array([499], dtype=np.uint64), 500, 17, 0).tolist(),
        *permuted(np.array([0], dtype=np.uint64), 500, 17, 1).tolist(),
    ]
    assert sampler.state == SamplerState(17, 1, 1)


def test_passes_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(permuted(np.arange(500, dtype=np.uint64), 500, seed, epoch).tolist())
        for seed in range(4)
        for epoch in range(3)
    ]
    assert len(set(orders)) == len(orders)
    shared = [sum(a == b for a, b in zip(orders[0], other, strict=True)) for other in orders[1:]]
    assert max(shared) < 10  # one match is what chance gives


def test_the_order_is_spread_evenly():
    """Where the first of 64 windows lands, over 6,400 seeds: chi-squared with 63 degrees of
    freedom stays under 120 (p = 2e-5).
    """
    first = np.zeros(1, dtype=np.uint64)
    places = np.bincount(
        [int(permuted(first, 64, seed, 0)[0]) for seed in range(6400)], minlength=64
    )
    assert float(((places - 100) ** 2 / 100).sum()) < 120


def test_a_large_text_costs_no_more_than_a_small_one():
    taken = Sampler(10**12, SamplerState(5)).take(100)
    assert len(set(taken.tolist())) == 100
    assert 0 <= taken.min() <= taken.max() < 10**12


def test_another_order_goes_on_at_the_same_position():
    sampler = Sampler(100, SamplerState(1))
    sampler.take(40)
    sampler.reorder(2)
    assert sampler.state == SamplerState(2, 0, 40)


def test_no_window_is_refused():
    with pytest.raises(ValueError, match="at least one window"):
        Sampler(0, SamplerState(1))
