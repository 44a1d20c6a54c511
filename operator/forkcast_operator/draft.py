"""The draft of a branch: draw, forecast, rank. Reproducible from the branch's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import grpc
import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.decision import Candidate, Draft, ProxyAnswer
from forkcast.ranking import rank
from forkcast.records import Forecast, Window
from forkcast_operator.search import SEARCH
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import candidate_to_wire, forecast_from_wire, window_to_wire
from forkcast_wire.forkcast_pb2_grpc import ProxyStub
from forkcast_wire.manifest import TrainingRunSpec

#: Of an answer's texts, characters: they are kept in the branch's records and shown.
_MOST_NOTE: Final = 1000
_MOST_DIGEST: Final = 64


def seed_of(branch: str, seed: int) -> int:
    """The search's seed: 48 bits of the branch's name and the run's seed, so that a run that is
    repeated draws the same candidates.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{branch}".encode()).digest()[:6])


def draw(
    spec: TrainingRunSpec,
    lattice: Lattice,
    window: Window,
    history: Sequence[tuple[Action, float]],
    seed: int,
) -> tuple[Candidate, ...]:
    """min(M, size) distinct candidates, named in draft order."""
    strategy = SEARCH[spec.branching.search]()
    rng = np.random.default_rng(seed)
    actions = strategy.propose(window, lattice, history, rng, spec.branching.candidates)
    return tuple(Candidate(name=f"c{n:03d}", action=action) for n, action in enumerate(actions))


def draft(
    spec: TrainingRunSpec,
    lattice: Lattice,
    window: Window,
    history: Sequence[tuple[Action, float]],
    seed: int,
    proxy: ProxyStub | None,
    top_k: int,
) -> Draft:
    """The whole draft, with at most ``top_k`` finalists. A proxy that is down, slow or wrong costs its opinion, nothing else."""
    candidates = draw(spec, lattice, window, history, seed)
    forecasts: dict[str, Forecast] = {}
    answer, horizon, model, detail = ProxyAnswer.NOT_ASKED, 0, "", ""
    if proxy is not None and spec.proxy.mode == "Service":
        left = spec.training.total_steps - int(window.columns["step"][-1]) if len(window) else 1
        horizon = max(1, min(spec.proxy.horizon_steps, left))
        answer, forecasts, model, detail = _ask(spec, window, candidates, horizon, proxy)
    candidates = tuple(replace(c, forecast=forecasts.get(c.name)) for c in candidates)
    finalists, source = rank(
        candidates,
        top_k=top_k,
        max_risk=spec.branching.acceptance.max_risk_quantile,
    )
    return Draft(
        seed=seed,
        strategy=spec.branching.search,
        source=source,
        model=model,
        horizon=horizon,
        proxy=answer,
        detail=detail,
        candidates=candidates,
        finalists=finalists,
    )


def _ask(
    spec: TrainingRunSpec,
    window: Window,
    candidates: Sequence[Candidate],
    horizon: int,
    proxy: ProxyStub,
) -> tuple[ProxyAnswer, dict[str, Forecast], str, str]:
    """How it went, the forecasts by candidate, the model's digest and what was said beside."""
    request = pb.ForecastRequest(
        window=window_to_wire(window),
        candidates=[candidate_to_wire(one) for one in candidates],
        horizon_steps=horizon,
    )
    try:
        answer = proxy.Forecast(request, timeout=spec.proxy.timeout_seconds)
    except grpc.RpcError as error:
        return ProxyAnswer.UNAVAILABLE, {}, "", error.code().name
    named = sorted(forecast.candidate for forecast in answer.forecasts)
    if named != sorted(candidate.name for candidate in candidates):
        return ProxyAnswer.INVALID, {}, "", "its forecasts do not match the candidates"
    forecasts = {one.candidate: forecast_from_wire(one) for one in answer.forecasts}
    if not all(map(_valid, forecasts.values())):
        return ProxyAnswer.INVALID, {}, "", "its forecasts are not numbers that can be"
    if len(answer.model_digest) > _MOST_DIGEST:
        return ProxyAnswer.INVALID, {}, "", f"model_digest: at most {_MOST_DIGEST} characters"
    silent = all(one.abstained is not None for one in forecasts.values())
    said = ProxyAnswer.ABSTAINED if silent else ProxyAnswer.ANSWERED
    return said, forecasts, answer.model_digest, answer.note[:_MOST_NOTE]


def _valid(forecast: Forecast) -> bool:
    risk, odds, recovery = forecast.risk, forecast.p_divergence, forecast.recovery_steps
    if risk is not None and not 0.0 <= risk <= 1.0:
        return False
    if odds is not None and not 0.0 <= odds.low <= odds.high <= 1.0:
        return False
    if recovery is not None and not recovery.low >= 0.0:
        return False
    for interval in (forecast.loss, forecast.p_divergence, forecast.recovery_steps):
        if interval is not None:
            values = (interval.low, interval.point, interval.high)
            if not all(map(np.isfinite, values)) or list(values) != sorted(values):
                return False
    return True
