"""The Proxy service: a model's forecasts where there is a valid one, abstentions otherwise."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from forkcast.decision import Candidate
from forkcast.records import Window
from forkcast_proxy import metrics
from forkcast_proxy.forecast import forecast
from forkcast_proxy.heuristic import abstain
from forkcast_proxy.session import Model, ModelRejectedError, open_model
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import candidate_from_wire, forecast_to_wire, window_from_wire
from forkcast_wire.forkcast_pb2_grpc import ProxyServicer

NO_MODEL = "no fitted model is installed"
#: Where the shipped model stands, once there is one.
SHIPPED = Path(__file__).parent / "model"
#: As many as a manifest may ask for.
MOST_CANDIDATES = 500
_THREADS = 2
_log = structlog.get_logger()


class MalformedRequestError(ValueError):
    """The request is not one; the message names the field."""


class Proxy(ProxyServicer):  # type: ignore[misc]  # generated code is untyped
    """Answers every candidate; an abstaining forecast carries no numbers. ``folder``: of
    model.onnx and model.json. A model that is missing or refused costs its opinion, nothing else.
    """

    def __init__(self, folder: Path = SHIPPED) -> None:
        self.model: Model | None = None
        self.note = ""
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="forecast")
        try:
            self.model = open_model(folder)
        except FileNotFoundError:
            self.note = NO_MODEL
        except (OSError, ModelRejectedError) as error:
            self.note = f"model rejected: {error}"
            _log.error("proxy.model_rejected", folder=str(folder), reason=str(error))
        if self.model is not None:
            card = self.model.card
            metrics.MODEL.labels(card.sha256, str(card.feature_version)).set(1)

    async def Forecast(  # noqa: N802
        self, request: pb.ForecastRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ForecastResponse:
        """Forecasts in the order of the candidates; INVALID_ARGUMENT for a malformed request."""
        loop = asyncio.get_running_loop()
        try:
            with metrics.SECONDS.time():
                return await loop.run_in_executor(self._pool, self.answer, request)
        except MalformedRequestError as error:
            metrics.FORECASTS.labels("none", "invalid").inc(len(request.candidates))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def answer(self, request: pb.ForecastRequest) -> pb.ForecastResponse:
        """The answer to one request. Raises MalformedRequestError."""
        window, candidates = _read(request)
        if self.model is None:
            answers, note, digest = abstain(candidates, self.note), self.note, ""
        else:
            answers, note = forecast(self.model, window, candidates, request.horizon_steps)
            judged = any(one.abstained is None for one in answers)
            digest = self.model.card.sha256 if judged else ""
        metrics.count(answers, "none" if self.model is None else "model")
        return pb.ForecastResponse(
            forecasts=map(forecast_to_wire, answers), model_digest=digest, note=note
        )

    async def drain(self) -> None:
        """Requests are short: what runs is let finish."""


def _read(request: pb.ForecastRequest) -> tuple[Window, list[Candidate]]:
    """Raises MalformedRequestError."""
    if len(request.candidates) > MOST_CANDIDATES:
        raise MalformedRequestError(f"candidates: at most {MOST_CANDIDATES}")
    try:
        window = window_from_wire(request.window)
        candidates = [candidate_from_wire(one) for one in request.candidates]
    except ValueError as error:
        raise MalformedRequestError(str(error)) from None
    if len({one.name for one in candidates}) != len(candidates):
        raise MalformedRequestError("candidates: names must be distinct")
    return window, candidates
