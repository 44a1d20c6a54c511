"""The Proxy service. Until a fitted model is installed it abstains, and says so."""

from __future__ import annotations

import grpc

from forkcast.records import Forecast
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import candidate_from_wire, forecast_to_wire, window_from_wire
from forkcast_wire.forkcast_pb2_grpc import ProxyServicer

NO_MODEL = "no fitted model is installed"


class Proxy(ProxyServicer):  # type: ignore[misc]  # generated code is untyped
    """Answers every candidate; an abstaining forecast carries no numbers."""

    def Forecast(  # noqa: N802
        self, request: pb.ForecastRequest, context: grpc.ServicerContext
    ) -> pb.ForecastResponse:
        """Forecasts in the order of the candidates; INVALID_ARGUMENT for a malformed request."""
        try:
            window_from_wire(request.window)
            candidates = [candidate_from_wire(one) for one in request.candidates]
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        forecasts = [
            Forecast(
                candidate=one.name,
                loss=None,
                p_divergence=None,
                risk=None,
                recovery_steps=None,
                abstained=NO_MODEL,
            )
            for one in candidates
        ]
        return pb.ForecastResponse(forecasts=map(forecast_to_wire, forecasts), note=NO_MODEL)
