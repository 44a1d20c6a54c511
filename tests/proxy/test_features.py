"""Features: finite for any window, scale-free, the same whatever the window's length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.actions import Action, Lattice
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.features import (
    ACTION_FEATURES,
    FEATURE_NAMES,
    WINDOW_FEATURES,
    features,
    reference_loss,
)


def window(length=64, seed=0, total=1000, **changed):
    rng = np.random.default_rng(seed)
    step = np.arange(100, 100 + length, dtype=float)
    columns = {name: np.exp(0.1 * rng.standard_normal(length)) for name in WINDOW_COLUMNS}
    columns |= {"step": step, "loss": 3.0 + 0.1 * rng.standard_normal(length)}
    columns["grad_norm_clipped"] = np.minimum(columns["grad_norm"], 1.0)
    return Window("u", 0, total, columns | changed)


cells = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf")]),
)


@st.composite
def windows(draw):
    length = draw(st.integers(0, 12))
    columns = {
        name: np.array(draw(st.lists(cells, min_size=length, max_size=length)), dtype=float)
        for name in WINDOW_COLUMNS
    }
    return Window("u", 0, draw(st.integers(0, 2**40)), columns)


actions = st.builds(
    Action,
    learning_rate_scale=st.floats(1e-300, 1e300),
    weight_decay_scale=st.floats(1e-300, 1e300),
    clipping=st.sampled_from([*Lattice().clipping, "New"]),
    momentum_reset=st.booleans(),
    rewind_steps=st.integers(0, 2**40),
    data_reorder=st.booleans(),
    skip_batches=st.integers(0, 2**30),
)


@settings(max_examples=300)
@given(windows(), st.lists(actions, max_size=3), st.integers(1, 2**31))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_finite_for_any_window_and_action(one, some, horizon):
    matrix = features(one, some, horizon)
    assert matrix.shape == (len(some), len(FEATURE_NAMES))
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    reference = reference_loss(one)
    assert reference is None or (np.isfinite(reference) and reference > 0)


def test_names_are_distinct_and_split():
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    assert (*WINDOW_FEATURES, *ACTION_FEATURES) == FEATURE_NAMES


def test_scales_do_not_matter():
    plain = window()
    scaled = window(
        loss=plain.columns["loss"] * 2.5,
        validation_loss=plain.columns["validation_loss"] * 2.5,
        learning_rate=plain.columns["learning_rate"] * 1e-3,
        grad_norm=plain.columns["grad_norm"] * 40,
        grad_norm_clipped=plain.columns["grad_norm_clipped"] * 40,
    )
    given_action = [Action(learning_rate_scale=0.8)]
    np.testing.assert_allclose(
        features(plain, given_action, 200), features(scaled, given_action, 200), atol=1e-5
    )


def test_only_the_last_64_steps_count():
    long = window(512)
    short = Window("u", 0, 1000, {n: c[-64:] for n, c in long.columns.items()})
    assert (features(long, [Action()], 50) == features(short, [Action()], 50)).all()


def test_missing_is_zero_with_a_flag():
    row = features(window(update_cosine=np.full(64, np.nan)), [Action()], 200)[0]
    named = dict(zip(FEATURE_NAMES, row.tolist(), strict=True))
    assert (named["cosine_mean"], named["cosine_now"], named["cosine_missing"]) == (0, 0, 1)
    assert named["entropy_missing"] == 0


def test_every_lattice_action_has_its_own_row():
    choices = list(Lattice(rewind_steps=(0, 50, 200)).actions())
    matrix = features(window(), choices, 200)
    assert len(np.unique(matrix, axis=0)) == len(choices)
    assert (matrix[:, : len(WINDOW_FEATURES)] == matrix[0, : len(WINDOW_FEATURES)]).all()


def test_reference_is_the_weighted_recent_loss():
    columns = {name: np.array([1.0, 2.0]) for name in WINDOW_COLUMNS}
    expected = (0.95 * 1.0 + 2.0) / 1.95
    assert reference_loss(Window("u", 0, 9, columns)) == pytest.approx(expected)
