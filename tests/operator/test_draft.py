"""A branch's draft, asked of a real proxy: what each abstention leaves, and what the record says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from forkcast.actions import Lattice
from forkcast.decision import Draft, DraftSource, ProxyAnswer
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_operator.draft import draft
from forkcast_wire.channel import open_channel
from forkcast_wire.forkcast_pb2_grpc import ProxyStub
from forkcast_wire.manifest import TrainingRunSpec
from tests.waiting import HANG_SECONDS

LATTICE = Lattice(rewind_steps=(5, 60))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> Iterator[ProxyStub]:
    """The service with the model that it ships."""
    folder = tmp_path_factory.mktemp("proxy")
    command = [sys.executable, "-m", "forkcast_proxy", "--listen", "unix:p.sock"]
    environment = {**os.environ, "FORKCAST_PARENT": str(os.getpid())}
    service = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env=environment)
    with open_channel(f"unix:{folder}/p.sock") as channel:
        grpc.channel_ready_future(channel).result(timeout=HANG_SECONDS)
        yield ProxyStub(channel)
    service.kill()
    service.wait()


def window(**changed: float) -> Window:
    rng = np.random.default_rng(0)
    columns = {name: np.exp(0.05 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
    columns |= {
        "step": np.arange(150.0, 214.0),
        "loss": 2.8 + 0.05 * rng.standard_normal(64),
        "learning_rate": np.full(64, 3e-3),
        "update_ratio": np.full(64, 2e-3),
        "update_cosine": np.full(64, 0.1),
        "attention_logit_max": np.full(64, 2.0),
        "validation_loss": np.full(64, 2.8),
        "index_z": rng.standard_normal(64),
    }
    columns |= {name: np.full(64, value) for name, value in changed.items()}
    return Window("u", 0, 1000, columns)


def drafted(
    proxy: ProxyStub | None, horizon: int, max_risk: str = "0.2", **changed: float
) -> Draft:
    spec = TrainingRunSpec.model_validate(
        {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 1000},
            "branching": {"acceptance": {"maxRiskQuantile": max_risk}},
            "proxy": {"horizonSteps": horizon, "timeoutSeconds": "60"},
        }
    )
    return draft(spec, LATTICE, window(**changed), [], 7, proxy, spec.branching.top_k)


def test_expected_loss_orders_where_the_risk_is_withheld(proxy: ProxyStub) -> None:
    made = drafted(proxy, 200)
    assert (made.source, len(made.model), len(made.finalists)) == (DraftSource.PROXY, 64, 6)
    assert (made.proxy, made.risk_known) == (ProxyAnswer.ANSWERED, False)
    assert made.note.startswith("risk: unavailable; ")
    assert "withheld at +200" in made.detail
    forecasts = [made.candidate(name).forecast for name in made.finalists]
    losses = [one.loss.point for one in forecasts if one is not None and one.loss is not None]
    assert len(losses) == 6
    assert losses == sorted(losses)


def test_a_calibrated_risk_gates(proxy: ProxyStub) -> None:
    made = drafted(proxy, 50)
    assert (made.proxy, made.risk_known, made.note) == (ProxyAnswer.ANSWERED, True, made.detail)
    risks = [c.forecast.risk for c in made.candidates if c.forecast is not None]
    assert None not in risks
    passing = {c.name for c in made.candidates if c.forecast and (c.forecast.risk or 0) < 0.2}
    assert set(made.finalists) <= passing
    assert len(made.finalists) == min(6, len(passing))
    strict = drafted(proxy, 50, max_risk="0.01")
    assert strict.finalists == ()  # no rollout is spent on what may not be accepted
    assert strict.model == made.model


@pytest.mark.parametrize(
    ("horizon", "changed", "says"),
    [(2000, {}, "50 to 200 steps ahead"), (200, {"update_ratio": 1e6}, "")],
)
def test_without_numbers_the_portfolio_orders(
    proxy: ProxyStub, horizon: int, changed: dict[str, float], says: str
) -> None:
    made = drafted(proxy, horizon, **changed)
    assert (made.source, made.model) == (DraftSource.HEURISTIC, "")
    assert made.proxy is ProxyAnswer.ABSTAINED
    assert says in made.detail
    alone = drafted(None, horizon, **changed)
    assert (alone.proxy, alone.detail) == (ProxyAnswer.NOT_ASKED, "")
    assert made.finalists == alone.finalists


def test_mode_heuristic_asks_nobody_though_a_proxy_is_there(proxy: ProxyStub) -> None:
    given = {"proxy": {"mode": "Heuristic"}}
    spec = TrainingRunSpec.model_validate(
        {"data": {"train": {"uri": "x"}}, "training": {"totalSteps": 1000}, **given}
    )
    made = draft(spec, LATTICE, window(), [], 7, proxy, spec.branching.top_k)
    assert (made.source, made.proxy) == (DraftSource.HEURISTIC, ProxyAnswer.NOT_ASKED)


def test_the_default_horizon_is_where_the_model_has_a_calibrated_risk(proxy: ProxyStub) -> None:
    spec = TrainingRunSpec.model_validate(
        {"data": {"train": {"uri": "x"}}, "training": {"totalSteps": 1_000_000}}
    )
    made = draft(spec, LATTICE, window(), [], 7, proxy, spec.branching.top_k)
    assert (made.proxy, made.risk_known) == (ProxyAnswer.ANSWERED, True)


def test_a_dead_proxy_costs_its_opinion_only(tmp_path) -> None:
    with open_channel(f"unix:{tmp_path}/none.sock") as channel:
        made = drafted(ProxyStub(channel), 200)
    assert made.source is DraftSource.HEURISTIC
    assert (made.proxy, made.detail) == (ProxyAnswer.UNAVAILABLE, "UNAVAILABLE")
    assert made.note == "risk: unavailable; proxy unavailable: UNAVAILABLE"
    assert made.finalists == drafted(None, 200).finalists
