"""The Proxy service: a model's forecasts where there is a valid one, abstentions otherwise."""

from __future__ import annotations

from pathlib import Path

import grpc
import structlog

from forkcast_proxy.forecast import forecast
from forkcast_proxy.heuristic import abstain
from forkcast_proxy.session import Model, ModelRejectedError, open_model
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import candidate_from_wire, forecast_to_wire, window_from_wire
from forkcast_wire.forkcast_pb2_grpc import ProxyServicer

NO_MODEL = "no fitted model is installed"
#: Where the shipped model stands, once there is one.
SHIPPED = Path(__file__).parent / "model"
_log = structlog.get_logger()


class Proxy(ProxyServicer):  # type: ignore[misc]  # generated code is untyped
    """Answers every candidate; an abstaining forecast carries no numbers. ``folder``: of
    model.onnx and model.json. A model that is missing or refused costs its opinion, nothing else.
    """

    def __init__(self, folder: Path = SHIPPED) -> None:
        self.model: Model | None = None
        self.note = ""
        try:
            self.model = open_model(folder)
        except FileNotFoundError:
            self.note = NO_MODEL
        except (OSError, ModelRejectedError) as error:
            self.note = f"model rejected: {error}"
            _log.error("proxy.model_rejected", folder=str(folder), reason=str(error))

    def Forecast(  # noqa: N802
        self, request: pb.ForecastRequest, context: grpc.ServicerContext
    ) -> pb.ForecastResponse:
        """Forecasts in the order of the candidates; INVALID_ARGUMENT for a malformed request."""
        try:
            window = window_from_wire(request.window)
            candidates = [candidate_from_wire(one) for one in request.candidates]
            if len({one.name for one in candidates}) != len(candidates):
                raise ValueError("candidates: names must be distinct")  # noqa: TRY301
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if self.model is None:
            answers, note, digest = abstain(candidates, self.note), self.note, ""
        else:
            answers, note = forecast(self.model, window, candidates, request.horizon_steps)
            judged = any(one.abstained is None for one in answers)
            digest = self.model.card.sha256 if judged else ""
        return pb.ForecastResponse(
            forecasts=map(forecast_to_wire, answers), model_digest=digest, note=note
        )
