"""A monitor and a proxy that send what nobody can read: what is left of their answers counts."""

from __future__ import annotations

import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from forkcast.actions import Lattice
from forkcast.decision import ProxyAnswer
from forkcast_operator.__main__ import LocalOperator
from forkcast_operator.draft import draft
from forkcast_operator.kubernetes import monitor_link
from forkcast_operator.kubernetes.monitor_link import MonitorLink
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import listen, open_channel
from forkcast_wire.codec import summary_from_wire, trigger_from_wire, trigger_to_wire
from forkcast_wire.documents import RunInfo
from forkcast_wire.forkcast_pb2_grpc import (
    MonitorServicer,
    ProxyServicer,
    ProxyStub,
    add_MonitorServicer_to_server,
    add_ProxyServicer_to_server,
)
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import FolderStore
from tests.make import trigger
from tests.operator.test_draft import window
from tests.waiting import HANG_SECONDS, until

SPEC = TrainingRunSpec.model_validate(
    {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 1000}}
)


class Lying(MonitorServicer):
    """Sends two triggers that cannot be read before each good one, and ends its stream at once."""

    def __init__(self) -> None:
        self.streams, self.again = 0, threading.Event()

    def WatchTriggers(self, request, context):
        self.streams += 1
        for uid in ("bad", "u", "v"):
            for nonsense in ({"rule": "Nonsense"}, {"rule": "Single", "step": 2**64 - 1}):
                yield pb.TriggerEvent(trigger=pb.Trigger(run_uid=uid, **nonsense))
            if uid != "bad":
                yield pb.TriggerEvent(seq=1, trigger=trigger_to_wire(trigger(run_uid=uid)))
        if self.streams > 1:
            self.again.set()

    def ListRuns(self, request, context):
        bad = pb.RunSummary(run_uid="bad", seconds_since_report=1e300)
        return pb.ListRunsResponse(runs=[bad, pb.RunSummary(run_uid="u", next_step=7)])


@contextmanager
def served(tmp_path, add, servicer):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add(servicer, server)
    target = f"unix:{tmp_path}/s.sock"
    listen(server, target)
    server.start()
    try:
        yield target
    finally:
        server.stop(None)


def test_the_operator_hears_what_comes_after_a_trigger_that_it_cannot_read(
    tmp_path, monkeypatch
) -> None:
    """Regression: it began again from the first each second, and heard no later trigger of any run."""
    monkeypatch.setattr(monitor_link, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(monitor_link, "_LIST_SECONDS", 0.01)
    lying = Lying()
    with (
        served(tmp_path, add_MonitorServicer_to_server, lying) as target,
        capture_logs() as logs,
        open_channel(target) as channel,
    ):
        link = MonitorLink(channel, lambda _: None)
        link.start()
        assert lying.again.wait(HANG_SECONDS)
        until(lambda: link.triggers("u") and link.triggers("v"), "the good triggers")
        until(lambda: "u" in link._summaries, "the good summary")
        assert "bad" not in link._summaries
        link.close()
    told = [
        log["run_uid"] for log in logs if log["event"] == "monitor.trigger_unreadable"
    ]  # over two streams
    assert told == ["bad", "u", "v"]
    assert [log["run_uid"] for log in logs if log["event"] == "monitor.summary_unreadable"] == [
        "bad"
    ]


def test_the_local_operator_hears_what_comes_after_a_trigger_that_it_cannot_read(tmp_path) -> None:
    """Regression: the thread that listens ended in a traceback."""
    lying = Lying()
    with served(tmp_path, add_MonitorServicer_to_server, lying) as target, capture_logs() as logs:
        info = RunInfo(uid="u", name="run", manifest_digest="d")
        store = FolderStore(tmp_path / "store")
        operator = LocalOperator(SPEC, info, store, tmp_path, target, "")
        operator.watch(lying.again)
    assert {one.run_uid for one in operator._pending} == {"u", "v"}
    assert [log["run_uid"] for log in logs] == ["bad", "u", "v"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", 2**64 - 1),
        ("onset_step", 2**63),
        ("epoch", 2**32 - 1),
        ("run_uid", "u" * 65),
        ("components", {"n" * 65: 0.0}),
        ("thresholds", {str(n): 0.0 for n in range(65)}),
        ("rule", "Nonsense"),
    ],
)
def test_a_trigger_that_no_monitor_makes_is_refused_by_its_field(field, value) -> None:
    message = pb.Trigger(**{"rule": "Single", field: value})
    with pytest.raises(ValueError, match=field if field != "rule" else "Nonsense"):
        trigger_from_wire(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("next_step", 2**64 - 1),
        ("tokens", 2**63),
        ("epoch", 2**32 - 1),
        ("last_trigger_step", 2**63),
        ("seconds_since_report", float("nan")),
        ("seconds_since_report", -1.0),
        ("seconds_since_report", 1e300),
    ],
)
def test_a_summary_that_no_status_can_hold_is_refused_by_its_field(field, value) -> None:
    with pytest.raises(ValueError, match=field):
        summary_from_wire(pb.RunSummary(run_uid="u", **{field: value}))


@pytest.mark.parametrize(
    "lie",
    [
        {"risk": float("nan")},
        {"p_divergence": pb.Interval(point=2.0, low=1.0, high=3.0)},
        {"recovery_steps": pb.Interval(point=0.0, low=-1.0, high=3.0)},
        {"loss": pb.Interval(point=float("nan"), low=0.0, high=0.0)},
        "twice",
        "digest",
    ],
)
def test_a_proxy_whose_answer_cannot_be_costs_its_opinion_only(tmp_path, lie) -> None:
    class LyingProxy(ProxyServicer):
        def Forecast(self, request, context):
            given = lie if isinstance(lie, dict) else {}
            made = [pb.CandidateForecast(candidate=c.name, **given) for c in request.candidates]
            digest = "d" * (65 if lie == "digest" else 64)
            return pb.ForecastResponse(forecasts=made + made[: lie == "twice"], model_digest=digest)

    with (
        served(tmp_path, add_ProxyServicer_to_server, LyingProxy()) as target,
        open_channel(target) as channel,
    ):
        made = draft(SPEC, Lattice(rewind_steps=(5, 60)), window(), [], 7, ProxyStub(channel), 6)
    assert made.proxy is ProxyAnswer.INVALID
    assert (
        made.finalists
        == draft(SPEC, Lattice(rewind_steps=(5, 60)), window(), [], 7, None, 6).finalists
    )


def test_the_words_of_a_proxy_are_kept_short(tmp_path) -> None:
    class Talking(ProxyServicer):
        def Forecast(self, request, context):
            made = [
                pb.CandidateForecast(candidate=c.name, abstained="a" * 9999)
                for c in request.candidates
            ]
            return pb.ForecastResponse(forecasts=made, note="n" * 99_999)

    with (
        served(tmp_path, add_ProxyServicer_to_server, Talking()) as target,
        open_channel(target) as channel,
    ):
        made = draft(SPEC, Lattice(rewind_steps=(5, 60)), window(), [], 7, ProxyStub(channel), 6)
    assert made.proxy is ProxyAnswer.ABSTAINED
    assert len(made.detail) == 1000
    forecasts = [one.forecast for one in made.candidates]
    assert all(one is not None and len(one.abstained or "") == 256 for one in forecasts)
