"""Where a run's loss stands: the forecast, the scale of a healthy row, and what the schedule does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.level import AGAIN_ROWS, RATE_ROWS, WARM_ROWS, Level
from forkcast.records import StepStats
from tests.made_runs import NOISE, healthy, laid_over
from tests.make import step_stats

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def followed(rows: Iterable[StepStats]) -> Level:
    """The level after the rows."""
    level = Level()
    for row in rows:
        level.fold(row)
    return level


def zs(rows: Iterable[StepStats]) -> np.ndarray:
    """z of each row."""
    level, found = Level(), []
    for row in rows:
        level.fold(row)
        found.append(level.z)
    return np.array(found)


@pytest.mark.parametrize("tau", [100.0, 300.0, 1000.0])
def test_a_curve_that_flattens_stays_within_its_noise(tau: float) -> None:
    """Regression: beside an average that lags, z stood near 5 for 1,500 rows."""
    z = zs(healthy(3000, tau=tau, seed=1))[WARM_ROWS:]
    for begin in range(0, len(z) - 400, 400):
        assert z[begin : begin + 400].mean() < 0.6
    assert (z > 4).mean() < 0.002


def test_a_rise_is_measured_from_the_trend_in_scales_of_a_healthy_row() -> None:
    rows = laid_over(healthy(1000), 900, 900, rise=10 * NOISE)
    level = followed(rows[:901])
    assert level.scale == pytest.approx(NOISE, rel=0.25)
    assert 6 < level.z < 14
    assert level.residual == pytest.approx(10 * NOISE, abs=4 * NOISE)


@pytest.mark.parametrize("height", [1.0, 100.0, 1e30])
def test_a_spike_moves_the_level_no_further_than_a_large_row_does(height: float) -> None:
    rows = healthy(1000)
    plain = followed(rows)
    spiked = followed(laid_over(rows, 980, 984, rise=height))
    assert spiked.cover - plain.cover < 5 * 0.02 * 2.5 * 1.5 * NOISE
    assert spiked.scale == pytest.approx(plain.scale, rel=0.1)


def test_noise_that_grows_for_good_is_learnt_and_a_departure_is_not() -> None:
    rng = np.random.default_rng(3)
    rows = healthy(2000, tau=50)
    noisy = [
        replace(row, loss=3 + 20 * NOISE * rng.standard_normal()) if row.step >= 1000 else row
        for row in rows
    ]
    assert followed(noisy).scale == pytest.approx(20 * NOISE, rel=0.5)
    departed = laid_over(rows, 1000, 1100, rise=20 * NOISE)
    assert followed(departed[:1101]).scale == pytest.approx(NOISE, rel=0.3)


def test_noise_after_a_loss_that_did_not_move_is_learnt() -> None:
    """Regression: no row was within the clip of a scale of 0 ever again."""
    rng = np.random.default_rng(3)
    rows = [
        step_stats(step, loss=3.0 + (0.01 * rng.standard_normal() if step >= 500 else 0.0))
        for step in range(1000)
    ]
    assert followed(rows).scale == pytest.approx(0.01, rel=0.5)
    assert (zs(rows)[700:] > 5).mean() < 0.01


@pytest.mark.parametrize("sizes", [0.15, 0.5, 1.5])
def test_a_loss_that_steps_down_begins_a_new_level(sizes: float) -> None:
    rows = laid_over(healthy(1600), 1000, 1600, rise=-sizes)
    level, far = Level(), []
    for row in rows:
        level.fold(row)
        far.append(level.residual)
    assert abs(float(np.mean(far[1020:1100]))) < NOISE
    assert not level.warm
    assert level.cover == pytest.approx(rows[-1].loss, abs=5 * NOISE)
    assert zs(rows)[1000:].max() < 4.5


def test_the_decay_of_a_schedule_is_no_departure_and_what_follows_it_can_be() -> None:
    rows = laid_over(healthy(1400), 1000, 1400, rise=lambda since: -0.4 * min(1.0, since / 200))
    z = zs(rows)
    assert z[1000:].max() < 4.5
    assert zs(laid_over(rows, 1350, 1352, rise=10 * NOISE))[1350:1353].min() > 5


def test_a_level_left_a_moment_ago_may_be_taken_again() -> None:
    rows = laid_over(healthy(1000, tau=50), 900, 919, rise=-5 * NOISE)
    z = zs(rows)
    assert z[920:].max() < 4  # 5 scales above the step, where it was before
    z = zs(laid_over(rows, 920, 1000, rise=7 * NOISE))
    assert z[920:924].min() > 3


@pytest.mark.parametrize(("decimals", "noise"), [(2, 0.002), (3, 0.0002), (2, 0.03), (1, 0.02)])
def test_a_row_rounded_to_the_next_value_is_no_departure(decimals: int, noise: float) -> None:
    rows = [
        replace(row, loss=round(row.loss, decimals)) for row in healthy(3000, noise=noise, seed=4)
    ]
    level = followed(rows)
    assert level.scale >= 0.4 * 10**-decimals
    assert zs(rows)[WARM_ROWS:].max() < 4.5


def test_a_rise_of_many_last_digits_is_one() -> None:
    rows = laid_over(healthy(1000, noise=0.002), 900, 903, rise=0.1)
    rounded = [replace(row, loss=round(row.loss, 2)) for row in rows]
    assert zs(rounded)[900:904].min() > 5


def test_a_smaller_batch_widens_the_scale_at_once() -> None:
    rows = healthy(
        1000, tokens=lambda step: 1000 * step if step < 900 else 899_000 + 100 * (step - 899)
    )
    before, after = followed(rows[:900]), followed(rows[:901])
    assert after.scale == pytest.approx(math.sqrt(10) * before.scale, rel=0.1)


def test_a_larger_batch_narrows_it_as_its_losses_are_seen() -> None:
    rows = healthy(
        1000, tokens=lambda step: 100 * step if step < 900 else 89_900 + 1000 * (step - 899)
    )
    assert followed(rows[:901]).scale == pytest.approx(followed(rows[:900]).scale, rel=0.1)


@pytest.mark.parametrize("spread", [0.1, 0.4])
def test_steps_of_all_sizes_are_no_change_of_the_batch(spread: float) -> None:
    """Regression: each shorter step widened the scale and no longer one narrowed it, without end."""
    rng = np.random.default_rng(5)
    tokens = np.cumsum(1000 * rng.uniform(1 - spread, 1 + spread, 3000)).astype(int)
    rows = healthy(3000, tokens=lambda step: int(tokens[step]))
    assert NOISE / 1.5 < followed(rows).scale < 2.5 * NOISE


def test_a_count_of_tokens_that_is_wrong_once_widens_little() -> None:
    rows = healthy(1500, tokens=lambda step: 100 * step + (2**60 if step == 900 else 0))
    rows = [replace(row, tokens=2**60 + 100 * row.step) if row.step > 900 else row for row in rows]
    assert max(followed(rows[:n]).scale for n in range(890, 950, 5)) < 5 * NOISE


def rates(step: int) -> float:
    """A warm-up, a plateau, and from step 300 on a restart."""
    return 1e-3 * min(1.0, (step + 1) / 100) if step < 300 else 2e-3


def test_a_restart_of_the_rate_is_known_for_a_while_and_a_warm_up_is_none() -> None:
    level, rose = Level(), []
    for row in healthy(600, learning_rate=rates):
        level.fold(row)
        if level.rate_rose:
            rose.append(row.step)
    assert rose == list(range(300, 300 + RATE_ROWS))


@pytest.mark.parametrize("rate", [math.nan, math.inf, 1e308, -1.0, 0.0])
def test_a_rate_that_is_none_is_not_measured(rate: float) -> None:
    rows = healthy(600, learning_rate=rates)
    hit = [replace(row, learning_rate=rate) if row.step == 200 else row for row in rows]
    level, other = followed(rows[:301]), followed(hit[:301])
    assert level.rate_rose
    assert other.rate_rose


def test_after_a_splice_the_level_is_learnt_again_and_the_scale_is_known() -> None:
    rows = healthy(1000, tau=50)
    level = followed(rows[:800])
    scale = level.scale
    level.splice()
    assert level.warm
    seen = []
    for row in laid_over(rows[800:], 800, 1000, rise=2.0, norm=20.0):
        level.fold(row)
        seen.append((level.warm, level.z, level.norm_rise))
    assert [warm for warm, _, _ in seen] == [True] * AGAIN_ROWS + [False] * (200 - AGAIN_ROWS)
    assert max(abs(z) for _, z, _ in seen) < 4
    assert level.scale == pytest.approx(scale, rel=0.5)
    # the norm of what went on elsewhere is no measure either
    assert max(abs(rise) for _, _, rise in seen[AGAIN_ROWS:]) < 0.6


def test_a_splice_in_the_warm_up_learns_the_scale_as_well() -> None:
    level = followed(healthy(20))
    level.splice()
    warm = 0
    for row in healthy(200):
        level.fold(row)
        warm += level.warm
    assert warm == WARM_ROWS


def test_the_norm_is_compared_with_its_own_average_and_a_missing_one_is_not_measured() -> None:
    level = followed(healthy(500))
    level.fold(step_stats(500, loss=3.0, grad_norm=3.0))
    assert level.norm_rise == pytest.approx(math.log(3), abs=0.3)
    for missing in (0.0, 0.0):
        level.fold(step_stats(501, loss=3.0, grad_norm=missing))
        assert level.norm_rise is None
        assert level.norm_finite
    alone = followed(replace(row, grad_norm=math.nan) for row in healthy(200))
    assert alone.norm_finite  # nobody measures it here
    level.fold(step_stats(502, loss=3.0, grad_norm=math.nan))
    assert not level.norm_finite  # but it was measured there


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_that_is_no_number_moves_nothing(bad: float) -> None:
    rows = healthy(400)
    level, hit = followed(rows[:300]), followed(rows[:300])
    hit.fold(step_stats(300, loss=bad, grad_norm=math.nan))
    assert not hit.finite
    assert hit.z == 0
    for row in rows[300:]:
        level.fold(row)
        hit.fold(row)
        assert (hit.z, hit.cover, hit.scale) == (level.z, level.cover, level.scale)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(ANY_FLOAT, st.floats(2, 4), st.just(3.0)),
            st.one_of(ANY_FLOAT, st.floats(0.5, 2)),
            st.one_of(ANY_FLOAT, st.sampled_from([1e-3, 2e-3])),
            st.integers(0, 2**63 - 1),
            st.integers(0, 40),  # 40: a splice
        ),
        max_size=150,
    ),
    st.integers(0, 150),
)
def test_whatever_comes_its_figures_are_finite_and_a_restart_is_bit_equal(rows, cut) -> None:
    level, other = Level(), Level()
    for number, (loss, norm, rate, tokens, splice) in enumerate(rows):
        if number == cut:
            other.restore(json.loads(json.dumps(level.state(), allow_nan=False)))
        row = step_stats(number, loss=loss, grad_norm=norm, learning_rate=rate, tokens=tokens)
        for one in (level, other)[: 1 + (number >= cut)]:
            if splice == 40:
                one.splice()
            one.fold(row)
        said = (level.z, level.residual, level.scale, level.recent)
        assert all(math.isfinite(value) for value in said)
        if number >= cut:
            assert other.state() == level.state()
            assert (other.z, other.residual, other.scale, other.recent, other.warm) == (
                *said,
                level.warm,
            )
            assert (other.norm_rise, other.finite) == (level.norm_rise, level.finite)
            assert (other.norm_finite, other.rate_rose) == (level.norm_finite, level.rate_rose)


@settings(max_examples=15, deadline=None)
@given(st.integers(-8, 8), st.integers(-6, 6), st.integers(0, 99))
def test_z_knows_no_unit_of_the_loss_nor_of_the_norm(power: int, of_norm: int, seed: int) -> None:
    """Exact for powers of two of the loss: nothing is rounded otherwise then."""
    rows = laid_over(healthy(300, seed=seed), 250, 260, rise=0.2, norm=3)
    scaled = [
        replace(row, loss=row.loss * 2.0**power, grad_norm=row.grad_norm * 2.0**of_norm)
        for row in rows
    ]
    level, other = Level(), Level()
    for row, one in zip(rows, scaled, strict=True):
        level.fold(row)
        other.fold(one)
        assert (other.z, other.warm) == (level.z, level.warm)
        assert other.cover == level.cover * 2.0**power
        assert other.norm_rise == pytest.approx(level.norm_rise, abs=1e-9)
