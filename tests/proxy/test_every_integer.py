"""Every integer of a request for forecasts at its extremes: an answer or a refusal, never a failure."""

import numpy as np
import pytest

from forkcast.actions import Action
from forkcast.decision import Candidate
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.server import MalformedRequestError, Proxy
from forkcast_wire.codec import candidate_to_wire, window_to_wire
from forkcast_wire.forkcast_pb2 import ForecastRequest
from tests.wire_integers import cases, name_of, put


def asked():
    columns = {name: np.full(64, 3.0) for name in WINDOW_COLUMNS} | {"step": np.arange(64.0)}
    window = Window(run_uid="u", epoch=0, total_steps=1000, columns=columns)
    return ForecastRequest(
        window=window_to_wire(window),
        candidates=[candidate_to_wire(Candidate(name="a", action=Action()))],
        horizon_steps=200,
    )


@pytest.mark.parametrize(
    ("path", "value"),
    cases(ForecastRequest.DESCRIPTOR),
    ids=lambda one: str(one) if isinstance(one, int) else name_of(one),
)
def test_it_is_answered_or_refused_by_name(path, value):
    request = asked()
    put(request, path, value)
    try:
        answer = Proxy().answer(request)
    except MalformedRequestError:
        return
    assert len(answer.forecasts) == 1, name_of(path)
