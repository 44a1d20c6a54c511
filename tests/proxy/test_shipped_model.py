"""The model in the package: its card holds, its forecasts are valid, and it knows what it does not."""

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.actions import Lattice
from forkcast.decision import Candidate
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.card import SERVED
from forkcast_proxy.forecast import at_horizon, forecast
from forkcast_proxy.judgement import RISK_LEVEL
from forkcast_proxy.server import SHIPPED, Proxy
from forkcast_proxy.session import ModelRejectedError, open_model

ACTIONS = list(Lattice(rewind_steps=(5, 60)).actions())
DRAWN = [Candidate(name=f"c{n:03d}", action=a) for n, a in enumerate(ACTIONS[::2])]


@pytest.fixture(scope="module")
def model():
    return open_model(SHIPPED)


def familiar(model, rng, *, slope=-0.1):
    """A window like those of the records."""
    columns = {name: np.exp(0.05 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
    columns |= {
        "step": np.arange(150.0, 214.0),
        "loss": 2.8 + slope * np.linspace(-1, 0, 64) + 0.05 * rng.standard_normal(64),
        "learning_rate": np.full(64, 3e-3),
        "update_ratio": np.full(64, 2e-3),
        "update_cosine": np.full(64, 0.1),
        "attention_logit_max": np.full(64, 2.0),
        "validation_loss": np.full(64, 2.8),
        "index_z": rng.standard_normal(64),
    }
    columns["grad_norm_clipped"] = np.minimum(columns["grad_norm"], 1.0)
    return Window("u", 0, 600, columns)


def valid(one):
    for interval in (one.loss, one.p_divergence, one.recovery_steps):
        if interval is not None:
            assert np.isfinite([interval.low, interval.point, interval.high]).all()
            assert 0 <= interval.low <= interval.point <= interval.high
    if one.p_divergence is not None:
        assert one.p_divergence.high <= 1
    assert one.risk is None or 0 <= one.risk <= 1
    numbers = (one.loss, one.p_divergence, one.risk, one.recovery_steps)
    assert one.abstained is None or numbers == (None,) * 4


def test_the_runtime_tells_nobody_of_its_use(tmp_path):
    """By default it writes an id of the machine and what it is to send into the home directory."""
    program = "from forkcast_proxy.server import Proxy; print(Proxy().note)"
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CACHE_HOME", None)
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"\n")
    assert list(tmp_path.rglob("*")) == []


def test_the_service_loads_it_by_default():
    proxy = Proxy()
    assert proxy.note == ""
    assert proxy.model is not None


def test_its_card_claims_no_more_than_its_figures_show(model):
    card, figures = model.card, model.card.figures
    assert card.made_from.startswith("sha256 ")
    for horizon in card.served["loss"]:
        end = f"h{horizon}"
        trivial = [
            figures[f"loss_mae_{name}{shift}_{end}"]
            for name in ("last_value", "exponential", "power_law")
            for shift in ("", "_shifted")
        ]
        assert figures[f"loss_mae_{end}"] < min(trivial)
        for rival in ("by_kind", "portfolio"):
            assert figures[f"rank_correlation_{end}"] > figures[f"rank_correlation_{rival}_{end}"]
        assert figures[f"loss_coverage_{end}_high"] >= 0.9
    for horizon in card.served["divergence"]:
        assert figures[f"event_brier_h{horizon}"] < figures[f"event_brier_base_rate_h{horizon}"]
    assert set(card.served["risk"]) <= set(card.served["divergence"])
    for horizon, table in zip(card.horizons, card.risk, strict=True):
        assert (horizon in card.served["risk"]) <= (table.least < RISK_LEVEL)


def test_what_is_withheld_at_a_horizon_is_withheld_there(model):
    window = familiar(model, np.random.default_rng(0))
    for horizon in (*model.card.horizons, 120):
        answers, note = forecast(model, window, DRAWN, horizon)
        served = at_horizon(model.card, horizon)
        assert all(name in note for name in SERVED if name not in served)
        judged = [one for one in answers if one.abstained is None]
        assert judged
        for one in judged:
            valid(one)
            assert (one.loss is not None) == ("loss" in served)
            assert (one.p_divergence is not None) == ("divergence" in served)
            assert (one.risk is not None) == ("risk" in served)
            assert (one.recovery_steps is not None) == ("recovery" in served)


def test_between_horizons_both_must_be_served_and_for_a_risk_the_farther():
    card = open_model(SHIPPED).card
    changed = {"loss": (50,), "divergence": (50, 200), "recovery": (), "risk": (200,)}
    object.__setattr__(card, "served", changed)
    assert at_horizon(card, 50) == {"loss", "divergence"}
    assert at_horizon(card, 120) == {"divergence", "risk"}
    assert at_horizon(card, 200) == {"divergence", "risk"}


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-9, 1e-2, 1.0, 1e4, 1e12]),
    st.floats(0, 1),
    st.integers(1, 70),
    st.sampled_from([1, 50, 120, 200, 201]),
)
def test_any_window_gets_a_valid_answer(seed, scale, share, rows, horizon):
    model, rng = open_model(SHIPPED), np.random.default_rng(seed)
    columns = {name: scale * rng.standard_normal(rows) for name in WINDOW_COLUMNS}
    for values in columns.values():
        gone = rng.random(rows) < share
        values[gone] = rng.choice([np.nan, np.inf, -np.inf], gone.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers, _ = forecast(model, Window("u", 0, 500, columns), DRAWN[:8], horizon)
    assert [one.candidate for one in answers] == [one.name for one in DRAWN[:8]]
    for one in answers:
        valid(one)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("loss", 60.0, "loss"),
        ("grad_norm", 1e7, "grad"),
        ("learning_rate", 1e-9, "rate"),
        ("update_ratio", 1e6, "update"),
    ],
)
def test_beyond_its_records_it_abstains(model, column, value, says):
    window = familiar(model, np.random.default_rng(0))
    window.columns[column][-8:] = value
    answers, _ = forecast(model, window, DRAWN, 200)
    assert {one.abstained.split(":")[0] for one in answers} == {"out of distribution"}
    assert all(says in one.abstained for one in answers)


def test_another_models_card_is_refused(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "model")
    text = (tmp_path / "model/model.json").read_text()
    digest = open_model(SHIPPED).card.sha256
    (tmp_path / "model/model.json").write_text(text.replace(digest, "0" * 64))
    with pytest.raises(ModelRejectedError, match="sha256"):
        open_model(tmp_path / "model")
    refused = Proxy(tmp_path / "model")
    assert refused.model is None
    assert "sha256" in refused.note
