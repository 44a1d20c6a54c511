"""Every stressor keeps the contract of the shelf; each one does what its name says."""

import numpy as np
import pytest

from forkcast_trainer.data.batches import Batches, Windows
from forkcast_trainer.data.sampler import Sampler, SamplerState
from forkcast_trainer.data.token_file import TokenFile
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.stressors import STRESSORS, make
from forkcast_trainer.stressors.base import DataStressor
from forkcast_trainer.stressors.text_artifacts import mangled_pool
from forkcast_wire.manifest import Stressor, StressorType
from tests.trainer.prepared import alone

LENGTH, COUNT, PEAK = 16, 4, 1e-3
FIRST, LAST = 100, 140
SURE = {"from_step": FIRST, "to_step": LAST, "probability": "1"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """40,000 ids: many small ones, and each of 200..299 exactly once."""
    ids = np.random.default_rng(0).integers(0, 200, size=40_000).astype(np.uint16)
    ids[1000:31_000:300] = np.arange(200, 300)
    path = tmp_path_factory.mktemp("tokens") / "ids.bin"
    ids.tofile(path)
    file = TokenFile(
        path=path,
        name="ids",
        dtype="uint16",
        count=len(ids),
        vocabulary_size=300,
        end_of_text=299,
        sha256="",
    )
    return file.part(0, len(ids))


def seen(tokens, stressors, step, position=0):
    """What a step sees: its batch and its learning rate."""
    on_data, on_rate = make(stressors, "bytes")
    batches = Batches(Windows(alone(tokens), LENGTH), on_data)
    sampler = Sampler(batches.text.windows, SamplerState(5, 0, position))
    batch = batches.read(step, batches.draw(step, sampler, COUNT))
    rate = PEAK / 3
    for one in on_rate:
        rate = one.rate(step, rate, PEAK)
    return batch, rate


def differs(a, b):
    return a[1] != b[1] or not np.array_equal(a[0], b[0])


@pytest.mark.parametrize("kind", STRESSORS)
def test_off_outside_its_window_and_on_inside(tokens, kind):
    one = [Stressor(type=kind, **SURE)]
    for step in (0, FIRST - 1, LAST, LAST + 500):
        assert not differs(seen(tokens, one, step), seen(tokens, [], step))
    for step in (FIRST, FIRST + 7, LAST - 1):
        assert differs(seen(tokens, one, step), seen(tokens, [], step))


@pytest.mark.parametrize("kind", STRESSORS)
def test_the_same_seed_and_step_bring_the_same_whoever_asks(tokens, kind):
    one = [Stressor(type=kind, **SURE)]
    for step in range(FIRST, LAST, 9):
        assert not differs(seen(tokens, one, step), seen(tokens, one, step))


@pytest.mark.parametrize("kind", STRESSORS)
def test_probability_nought_is_off(tokens, kind):
    one = [Stressor(type=kind, probability="0")]
    for step in range(0, 300, 13):
        assert not differs(seen(tokens, one, step), seen(tokens, [], step))


@pytest.mark.parametrize("kind", [k for k in STRESSORS if issubclass(STRESSORS[k], DataStressor)])
def test_ids_stay_in_the_vocabulary(tokens, kind):
    for step in range(FIRST, LAST):
        batch, _ = seen(tokens, [Stressor(type=kind, **SURE)], step)
        assert batch.dtype == np.int64
        assert 0 <= batch.min() <= batch.max() < 300


PER_STEP = (StressorType.RARE_TOKEN_BURST, StressorType.LONG_SEQUENCE, StressorType.TEXT_ARTIFACTS)


@pytest.mark.parametrize("kind", PER_STEP)
def test_it_strikes_as_often_as_the_probability_says(kind):
    """20,000 steps at .02: 400 on average, sd 19.8."""
    struck = STRESSORS[kind](Stressor(type=kind, probability="0.02"))
    assert abs(sum(struck.strikes(step) for step in range(20_000)) - 400) < 100


def test_stressors_of_one_seed_do_not_strike_together():
    """Of 500 strikes of each, chance lets about 12 coincide."""
    struck = []
    for kind in PER_STEP:
        one = STRESSORS[kind](Stressor(type=kind, probability="0.025", seed=1))
        struck.append({step for step in range(20_000) if one.strikes(step)})
    assert all(len(a & b) < 40 for a in struck for b in struck if a is not b)


def test_what_a_rare_strike_draws_is_not_bound_to_its_being_rare():
    one = STRESSORS[StressorType.LONG_SEQUENCE](
        Stressor(type=StressorType.LONG_SEQUENCE, probability="0.02")
    )
    draws = [one.generator(s).integers(0, 1000, 4) for s in range(20_000) if one.strikes(s)]
    assert np.abs(np.mean(draws, axis=0) - 500).max() < 75  # sd of a mean of 400: 14


def test_a_burst_is_of_the_rarest_hundredth(tokens):
    """300 ids occur: the three rarest, of those that occur once."""
    batch, _ = seen(tokens, [Stressor(type=StressorType.RARE_TOKEN_BURST, **SURE)], FIRST)
    assert batch.shape == (COUNT, LENGTH + 1)
    assert set(np.unique(batch)) <= {200, 201, 202}
    assert len(np.unique(batch)) > 1


def test_a_long_sequence_is_four_times_as_long_and_real_text(tokens):
    text = np.asarray(tokens.array, dtype=np.int64)
    batch, _ = seen(tokens, [Stressor(type=StressorType.LONG_SEQUENCE, **SURE)], FIRST)
    assert batch.shape == (COUNT, 4 * LENGTH + 1)
    windows = np.lib.stride_tricks.sliding_window_view(text, batch.shape[1])
    assert all((windows == row).all(axis=1).any() for row in batch)


def test_artifacts_come_from_the_pool_in_the_runs_own_tokenizer(tokens, tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([mangled_pool()], vocab_size=290, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(tmp_path))
    pools = {}
    for tokenizer in ("bytes", str(tmp_path)):
        on_data, _ = make([Stressor(type=StressorType.TEXT_ARTIFACTS, **SURE)], tokenizer)
        batch = on_data[0].batch(FIRST, np.zeros((COUNT, LENGTH + 1), np.int64), None)
        pool = open_tokenizer(tokenizer).encode(mangled_pool())
        around = np.concatenate([pool, pool[:LENGTH]])
        windows = np.lib.stride_tricks.sliding_window_view(around, LENGTH + 1)
        assert all((windows == row).all(axis=1).any() for row in batch)
        pools[tokenizer] = batch
    assert not np.array_equal(*pools.values())


def test_the_pool_holds_each_kind_of_damage():
    pool = mangled_pool()
    for mark in ("Ã¯", "\u200b", "\ufffd", "\u0301", "Thequickna", "東京"):
        assert mark in pool


def test_a_block_shuffled_batch_lies_in_one_block_of_64_windows(tokens):
    on_data, _ = make([Stressor(type=StressorType.BLOCK_SHUFFLE, probability="1")], "bytes")
    windows = (tokens.count - 1) // LENGTH
    sampler, blocks = Sampler(windows, SamplerState(5)), set()
    for step in range(100):
        ids = on_data[0].windows(step, sampler.take(32), windows)
        assert 0 <= ids.min() <= ids.max() < windows
        assert len(np.unique(ids // 64)) == 1
        blocks.add(int(ids[0]) // 64)
    assert len(blocks) > 20  # of 39


def test_block_shuffle_takes_whole_intervals(tokens):
    on_data, _ = make([Stressor(type=StressorType.BLOCK_SHUFFLE)], "bytes")
    ids = np.arange(0, 2000, 250)
    struck = [
        [not np.array_equal(on_data[0].windows(step, ids, 2499), ids) for step in range(a, a + 100)]
        for a in range(0, 40_000, 100)
    ]
    assert all(all(interval) or not any(interval) for interval in struck)
    assert 5 <= sum(interval[0] for interval in struck) <= 40  # 400 at .05: 20 on average


@pytest.mark.parametrize("windows", [1, 2, 63, 64, 65, 127])
def test_block_shuffle_of_a_short_text_stays_inside(windows):
    on_data, _ = make([Stressor(type=StressorType.BLOCK_SHUFFLE, probability="1")], "bytes")
    for step in range(50):
        ids = on_data[0].windows(step, np.arange(windows), windows)
        assert 0 <= ids.min() <= ids.max() < windows


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.4), (4, 2.0), (9, 4.0), (499, 4.0), (500, 1 / 3), (600, 1 / 3)]
)
def test_an_aggressive_warm_up_reaches_four_times_the_peak_by_step_ten(tokens, step, factor):
    _, rate = seen(tokens, [Stressor(type=StressorType.AGGRESSIVE_WARMUP)], step)
    assert rate == pytest.approx(factor * PEAK)


def test_an_aggressive_warm_up_of_its_own_magnitude_and_window(tokens):
    one = Stressor(type=StressorType.AGGRESSIVE_WARMUP, magnitude="10", from_step=50, to_step=70)
    rates = [seen(tokens, [one], step)[1] / PEAK for step in (49, 50, 59, 69, 70)]
    assert rates == pytest.approx([1 / 3, 1.0, 10.0, 10.0, 1 / 3])


def test_the_probability_of_an_aggressive_warm_up_is_that_of_the_seeds_run():
    met = [
        make(
            [Stressor(type=StressorType.AGGRESSIVE_WARMUP, probability="0.5", seed=seed)], "bytes"
        )[1][0]
        for seed in range(200)
    ]
    meets = [one.rate(20, PEAK, PEAK) > PEAK for one in met]
    assert 70 <= sum(meets) <= 130
    assert meets == [one.rate(300, PEAK, PEAK) > PEAK for one in met]


def test_every_type_of_the_manifest_is_on_the_shelf():
    assert set(STRESSORS) == set(StressorType)
