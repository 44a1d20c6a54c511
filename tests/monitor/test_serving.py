"""Health, reflection, metrics and the address: what a service offers beside its own calls."""

import asyncio
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from forkcast.records import WINDOW_COLUMNS
from forkcast_monitor import metrics as monitor_metrics
from forkcast_monitor.metrics import OVERFLOW, SeriesTable
from forkcast_proxy import metrics as proxy_metrics
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from tests.ports import free_port
from tests.waiting import HANG_SECONDS, until

from .conftest import Talker, registration, statistics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
_SERVING = health_pb2.HealthCheckResponse.SERVING


def scrape(port):
    """{(sample, its labels): value} of a metrics page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_SECONDS) as page:
        text = page.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def answers(port):
    try:
        return scrape(port)
    except OSError:
        return None


def test_health_on_its_own_port_says_serving(start_monitor, connect, target):
    health = free_port()
    start_monitor("--health-port", str(health))

    async def ask():
        async with connect() as (channel, _):
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in ("", "forkcast.v1.Monitor"):
                asked = health_pb2.HealthCheckRequest(service=name)
                assert (await check(asked, wait_for_ready=True)).status == _SERVING
        with open_channel(target) as channel:  # not without the flag; the asyncio client's write
            # may fail before it has read why
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.RpcError) as refused:
                next(reflection.ServerReflectionInfo(iter([asked])))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        plain = open_channel(f"127.0.0.1:{health}", aio=True, insecure_dev=True)
        async with plain:
            check = health_pb2_grpc.HealthStub(plain).Check
            assert (await check(health_pb2.HealthCheckRequest())).status == _SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:  # nothing else is there
                await MonitorStub(plain).ListRuns(pb.ListRunsRequest())
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(ask())


def test_reflection_behind_its_flag(start_monitor, connect):
    start_monitor("--reflection")

    async def ask():
        async with connect() as (channel, _):
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                wait_for_ready=True
            )
            await call.write(asked)
            names = (await call.read()).list_services_response.service
            assert "forkcast.v1.Monitor" in {one.name for one in names}
            await call.done_writing()

    asyncio.run(ask())


def test_a_runs_series_come_with_it_and_go_with_it(start_monitor, connect):
    port = free_port()
    start_monitor("--metrics-port", str(port))
    mine = (("namespace", "team"), ("run", "run-a"))

    async def play():
        async with connect() as (channel, stub):
            for uid in ("a", "b"):
                await stub.RegisterRun(registration(uid), wait_for_ready=True)
            await Talker(channel, "a", statistics("a", 100, spike=80)).talk()
            shown = scrape(port)
            assert shown["forkcast_steps_total", mine] == 100
            assert shown["forkcast_monitor_runs", ()] == 2
            assert shown["forkcast_train_loss", mine] == statistics("a", 100, spike=80)[-1].loss
            fired = [v for (name, _), v in shown.items() if name == "forkcast_triggers_total"]
            assert sum(fired) >= 1
            await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))
            left = scrape(port)
            assert not [key for key in left if ("run", "run-a") in key[1]]
            assert [key for key in left if ("run", "run-b") in key[1]]
            assert left["forkcast_monitor_runs", ()] == 1

    asyncio.run(play())


def test_a_run_that_has_not_started_has_no_loss(start_monitor, connect):
    port = free_port()
    start_monitor("--metrics-port", str(port))
    measured = (
        "uncertainty_index",
        "uncertainty_zscore",
        "train_loss",
        "grad_norm",
        "lineage_epoch",
    )

    async def play():
        async with connect() as (_, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            await stub.RegisterRun(registration("b"))
            shown = {
                name: v for (name, labels), v in scrape(port).items() if ("run", "run-a") in labels
            }
            assert not {f"forkcast_{name}" for name in measured} & shown.keys()
            assert (shown["forkcast_report_streams"], shown["forkcast_steps_total"]) == (0, 0)
            await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))
            assert not [key for key in scrape(port) if ("run", "run-a") in key[1]]

    asyncio.run(play())


def test_series_are_capped_and_the_rest_counts_together():
    table = SeriesTable(most=3)
    series = {n: table.open(f"uid{n}", "cap", f"r{n}") for n in range(100)}
    for one in series.values():
        one.accepted(2, 0)
        one.stands(statistics("u", 1)[0], None, 0)
        one.failed("INTERNAL")
    steps = {
        sample.labels["run"]: sample.value
        for sample in next(iter(monitor_metrics.STEPS.collect())).samples
        if sample.name.endswith("_total") and sample.labels["namespace"] in ("cap", OVERFLOW)
    }
    assert steps == {"r0": 2, "r1": 2, "r2": 2, OVERFLOW: 2 * 97}
    losses = {s.labels["run"] for s in next(iter(monitor_metrics.LOSS.collect())).samples}
    assert OVERFLOW not in losses
    again = table.open("uid0-made-again", "cap", "r0")  # before the first one is forgotten
    table.close("uid0", series[0])
    again.accepted(1, 0)
    assert {s.labels["run"] for s in next(iter(monitor_metrics.LOSS.collect())).samples} >= {"r0"}
    table.close("uid0-made-again", again)
    for n in (1, 2, 50):
        table.close(f"uid{n}", series[n])
    assert not [
        sample
        for family in monitor_metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.labels.get("namespace") == "cap"
    ]
    assert table.open("next", "cap", "r60").labels == ("cap", "r60")  # there is room again
    table.close("next", monitor_metrics.RunSeries("cap", "r60", own=True))


@pytest.mark.parametrize(
    ("registry", "heading"),
    [(monitor_metrics.REGISTRY, "Monitor"), (proxy_metrics.REGISTRY, "Proxy")],
)
def test_the_documentation_lists_what_is_exposed(registry, heading):
    section = re.search(rf"\n## {heading}\n(.*?)(\n##|\Z)", DOCS.read_text(), re.DOTALL)[1]
    rows = re.findall(r"\| `(forkcast_\w+)` \| (\w+) \|([^|]*)\|", section)
    documented = {
        name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows
    }
    exposed = {}
    for metric in registry._names_to_collectors.values():
        name = metric._name + ("_total" if metric._type == "counter" else "")
        exposed[name] = (metric._type, frozenset(metric._labelnames))
    assert documented == exposed
    labels = set().union(*(labels for _, labels in exposed.values()))
    assert labels <= {"namespace", "run", "rule", "code", "reason", "source", "outcome"} | {
        "sha256",
        "feature_version",
        "file",
    }


def test_the_proxy_counts_what_it_answers(tmp_path):
    port, target = free_port(), f"unix:{tmp_path}/p.sock"
    command = [sys.executable, "-m", "forkcast_proxy", "--listen", target]
    command += ["--metrics-port", str(port), "--model", str(tmp_path / "none")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        until(lambda: answers(port))
        with open_channel(target) as channel:
            stub = ProxyStub(channel)
            window = {"columns": [{"name": n, "values": [1.0]} for n in WINDOW_COLUMNS]}
            action = {"learning_rate_scale": 1, "weight_decay_scale": 1, "clipping": "Keep"}
            candidates = [{"name": f"c{n}", "action": action} for n in range(3)]
            asked = pb.ForecastRequest(window=window, candidates=candidates, horizon_steps=100)
            assert (
                len(stub.Forecast(asked, wait_for_ready=True, timeout=HANG_SECONDS).forecasts) == 3
            )
            asked.candidates[1].name = "c0"
            with pytest.raises(grpc.RpcError) as refused:
                stub.Forecast(asked, timeout=HANG_SECONDS)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        shown = scrape(port)
        name = "forkcast_proxy_forecasts_total"
        assert shown[name, (("outcome", "abstained"), ("source", "none"))] == 3
        assert shown[name, (("outcome", "invalid"), ("source", "none"))] == 3
        assert shown["forkcast_proxy_abstentions_total", (("reason", "no_model"),)] == 3
        assert shown["forkcast_proxy_request_seconds_count", ()] == 2
        assert not [key for key in shown if key[0] == "forkcast_proxy_model_info"]
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def test_every_reason_of_an_abstention_has_its_label():
    """The reasons as the service words them, read from its sources."""
    folder = Path(proxy_metrics.__file__).parent
    text = "".join((folder / name).read_text() for name in ("forecast.py", "server.py"))
    worded = re.findall(
        r'(?:reason = |note = |abstained\(one\.name, |abstained\(name, |NO_MODEL = )\(?\s*f?"([^"]+)"',
        text,
    )
    worded = [one for one in worded if not one.startswith("withheld")]
    assert len(worded) >= 6
    assert "other" not in {proxy_metrics.reason_label(one) for one in worded}


def test_metrics_answer_on_ipv4_and_ipv6(start_monitor):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    start_monitor("--metrics-port", str(port))
    until(lambda: answers(port))
    with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=HANG_SECONDS) as page:
        assert b"forkcast_monitor_runs" in page.read()
