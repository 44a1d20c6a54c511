"""The proxy ranking 128 candidates: the whole call over gRPC, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import served
from figures import Row, quantile, times

from forkcast.actions import Action, Lattice
from forkcast.decision import Candidate
from forkcast.ranking import rank
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.features import features
from forkcast_proxy.fit import build
from forkcast_proxy.forecast import forecast
from forkcast_proxy.records import Fork, Outcome, Record
from forkcast_proxy.server import SHIPPED
from forkcast_proxy.session import open_model
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import candidate_to_wire, forecast_from_wire, window_to_wire
from forkcast_wire.documents import dump
from forkcast_wire.forkcast_pb2 import ForecastRequest
from forkcast_wire.forkcast_pb2_grpc import ProxyStub

_CALLS, _WARM = 500, 20
_CANDIDATES = 128
_TOP_K, _MAX_RISK = 6, 0.2
_HORIZON = 200
_RUNS, _ACTIONS = 60, 8


def measure(scale: float) -> list[Row]:
    """One client, one call after the other."""
    count = times(_CALLS, scale, 20)
    window = _window(np.random.default_rng(1), 0.1)
    candidates = [
        Candidate(name=f"c{number:03d}", action=action)
        for number, action in enumerate(_actions(np.random.default_rng(2), _CANDIDATES))
    ]
    with served.folder() as folder:
        place, whose = SHIPPED, "the shipped model"
        if not (SHIPPED / "model.json").exists():
            place, whose = folder / "model", "no shipped model: one fitted on made records"
            _fit(place)
        judged = _judged(place, window, candidates)
        spent = {
            **_service(place, folder, window, candidates, count),
            **_parts(place, window, candidates, count),
        }
    rows: list[Row] = []
    for name, values in spent.items():
        for fraction in (0.5, 0.99):
            rows.append(
                Row(
                    section="proxy",
                    name=f"{name}, p{fraction * 100:.0f}",
                    value=quantile(values, fraction),
                    unit="us",
                    note=f"{whose}, judges {judged} of {_CANDIDATES}" if not rows else "",
                )
            )
    return rows


def _judged(place: Path, window: Window, candidates: list[Candidate]) -> int:
    """How many candidates the model does not abstain on: abstaining is cheaper."""
    answers, _ = forecast(open_model(place), window, candidates, _HORIZON)
    return sum(one.abstained is None for one in answers)


def _service(
    place: Path, folder: Path, window: Window, candidates: list[Candidate], count: int
) -> dict[str, list[float]]:
    """The operator's call: request made, sent, answered, read and ranked."""
    server = served.Served(folder / "p", ["-m", "forkcast_proxy", "--model", str(place)])

    def call() -> None:
        answer = stub.Forecast(
            ForecastRequest(
                window=window_to_wire(window),
                candidates=map(candidate_to_wire, candidates),
                horizon_steps=_HORIZON,
            ),
            timeout=10,
        )
        judged = [
            Candidate(name=one.name, action=one.action, forecast=forecast_from_wire(said))
            for one, said in zip(candidates, answer.forecasts, strict=True)
        ]
        rank(judged, top_k=_TOP_K, max_risk=_MAX_RISK)

    try:
        with open_channel(server.target) as channel:
            stub = ProxyStub(channel)
            return {"forecast and rank over gRPC": _timed(call, count)}
    finally:
        server.close()


def _parts(
    place: Path, window: Window, candidates: list[Candidate], count: int
) -> dict[str, list[float]]:
    """The service's work in this process, and its two largest parts."""
    model = open_model(place)
    actions = [one.action for one in candidates]
    matrix = features(window, actions, _HORIZON)
    return {
        "of it: forecast()": _timed(lambda: forecast(model, window, candidates, _HORIZON), count),
        "of that: features": _timed(lambda: features(window, actions, _HORIZON), count),
        "of that: session": _timed(lambda: model.run(matrix), count),
    }


def _timed(call: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each call, after a warm-up."""
    spent = []
    for number in range(count + _WARM):
        before = time.perf_counter_ns()
        call()
        if number >= _WARM:
            spent.append((time.perf_counter_ns() - before) / 1e3)
    return spent


# ------------------------------------------------------------------------------- a throw-away model


def _fit(place: Path) -> None:
    """A model of the shipped shape, by the project's own fit; what it says is worth nothing."""
    data, card = build(_records(), "made records, for timing only", seed=0)
    place.mkdir()
    (place / "model.onnx").write_bytes(data)
    (place / "model.json").write_bytes(dump(card))


def _actions(rng: np.random.Generator, count: int) -> list[Action]:
    every = list(Lattice(rewind_steps=(0, 50)).actions())
    return [every[number] for number in rng.choice(len(every), count, replace=False)]


def _window(rng: np.random.Generator, slope: float) -> Window:
    columns = {name: np.exp(0.1 * rng.standard_normal(64)) for name in WINDOW_COLUMNS}
    columns["step"] = np.arange(200.0, 264.0)
    columns["loss"] = 3.0 + slope * np.linspace(-1, 0, 64) + 0.02 * rng.standard_normal(64)
    return Window(served.UID, 0, 1000, columns)


def _records() -> list[Record]:
    """Runs whose outcome follows from the window's slope and the action's rate."""
    rng = np.random.default_rng(0)
    records = []
    for run in range(_RUNS):
        slope = float(rng.uniform(-0.5, 0.5))
        fork = Fork(
            run=f"r{run}", regime="made", cause="drawn", step=264, window=_window(rng, slope)
        )
        for action in [Action(), *_actions(rng, _ACTIONS)]:
            change = 0.4 * slope + 0.5 * (action.learning_rate_scale - 1)
            for horizon in (50, _HORIZON):
                outcome = Outcome(
                    horizon=horizon,
                    loss=3.0,
                    mean_loss=float(3.0 + change + 0.01 * rng.standard_normal()),
                    control_loss=3.0,
                    control_mean_loss=3.0,
                    diverged=False,
                    event=slope > 0.2,
                    control_event=False,
                    recovery_steps=float(rng.integers(0, 50)),
                    steps_run=horizon,
                    healthy=True,
                )
                records.append(Record(fork=fork, action=action, outcome=outcome))
    return records
