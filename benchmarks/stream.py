"""The statistics stream: the real Reporter against one message a write, at equal protos.

Both go once to a server that only acknowledges (the stream itself) and once to the real monitor
(detector and durable history included). CPU is that of both ends; records are made beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import served
from figures import Row, median, quantile, times
from made_statistics import made_statistics

from forkcast.records import StepStats
from forkcast_trainer import report
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.reporting import Hello, Reporter

_SINGLE, _COALESCED = 3_000, 20_000
_ROUNDS = 3
_PACED, _PACE_SECONDS = 400, 0.005
_PATIENCE = 120.0


@dataclass(frozen=True)
class Cost:
    """messages a second, and CPU microseconds a message of both ends."""

    rate: float
    cpu_us: float


def measure(scale: float) -> list[Row]:
    """Both ways to both servers in turns, then a paced stream for the hot thread and the delay."""
    single, many = times(_SINGLE, scale, 20), times(_COALESCED, scale, 20)
    found: dict[tuple[str, str], list[Cost]] = {}
    with served.folder() as folder:
        targets = {
            "acknowledging server": served.Served(
                folder / "a", [str(Path(__file__).with_name("ack_server.py"))]
            ),
            "monitor": served.monitor(folder / "m", served.quickstart()),
        }
        try:
            attempt = 0
            for _ in range(times(_ROUNDS, scale, 1)):
                for name, server in targets.items():
                    found.setdefault(("one a write", name), []).append(
                        one_a_write(server, _records(single, attempt))
                    )
                    found.setdefault(("Reporter", name), []).append(
                        coalesced(server, _records(many, attempt + 1))
                    )
                    attempt += 2
            paced = _paced(targets["monitor"], _records(times(_PACED, scale, 20), attempt))
        finally:
            for server in targets.values():
                server.close()
    return [*_rows(found), *paced]


def _records(count: int, attempt: int) -> list[StepStats]:
    return made_statistics(count, run_uid=served.UID, attempt=attempt)


def _hello(first: StepStats, total: int) -> Hello:
    return Hello(
        run_uid=first.run_uid,
        epoch=0,
        attempt=first.attempt,
        rank=0,
        start_step=first.step,
        total_steps=total,
        base_step=0,
    )


def _rows(found: dict[tuple[str, str], list[Cost]]) -> list[Row]:
    rows = []
    for server in dict.fromkeys(server for _, server in found):
        base_rate = median([one.rate for one in found["one a write", server]])
        base_cpu = median([one.cpu_us for one in found["one a write", server]])
        for way in ("one a write", "Reporter"):
            costs = found[way, server]
            rate, cpu = median([c.rate for c in costs]), median([c.cpu_us for c in costs])
            ours = way == "Reporter"
            against = f"one a write, {server}" if ours else ""
            row = Row(section="stream", name=f"{way} -> {server}", value=rate, unit="messages/s")
            cpu_row = replace(row, value=cpu, unit="CPU us/message")
            if ours:
                row = replace(row, ratio=rate / base_rate, against=against)
                cpu_row = replace(cpu_row, ratio=cpu / base_cpu, against=against)
            rows += [row, cpu_row]
    return rows


# ----------------------------------------------------------------------------------- both contestants


def one_a_write(server: served.Served, records: Sequence[StepStats]) -> Cost:
    """Bidirectional, a message for every record and an ack for every message."""
    hello = _hello(records[0], len(records)).to_wire(records[0].step)

    def batches() -> Iterator[pb.StatsBatch]:
        yield pb.StatsBatch(hello=hello)
        for seq, record in enumerate(records, start=1):
            yield pb.StatsBatch(seq=seq, stats=[stats_to_wire(record)])

    with open_channel(server.target) as channel:
        answers = MonitorStub(channel).Report(batches())
        next(answers)
        begun = _clocks(server)
        for ack in answers:
            if ack.seq == len(records):
                break
        cost = _cost(begun, _clocks(server), len(records))
        answers.cancel()
    return cost


def coalesced(server: served.Served, records: Sequence[StepStats]) -> Cost:
    """The trainer's Reporter, its ring wide enough to take all: nothing is dropped."""
    kept, report.RING_STEPS = report.RING_STEPS, len(records) + 1
    reporter = Reporter(server.target, _hello(records[0], len(records)))
    try:
        _until_live(reporter)
        begun = _clocks(server)
        for record in records:
            reporter.report(record)
        _until_acknowledged(reporter)
        return _cost(begun, _clocks(server), len(records))
    finally:
        reporter.close()
        report.RING_STEPS = kept


def _clocks(server: served.Served) -> tuple[float, float]:
    """(wall, CPU of both ends), seconds."""
    return time.perf_counter(), time.process_time() + machine.cpu_seconds(server.process.pid)


def _cost(begun: tuple[float, float], ended: tuple[float, float], count: int) -> Cost:
    return Cost(count / (ended[0] - begun[0]), (ended[1] - begun[1]) / count * 1e6)


def _until_live(reporter: Reporter) -> None:
    with reporter._changed:
        if not reporter._changed.wait_for(lambda: reporter._live is not None, _PATIENCE):
            raise TimeoutError("the monitor does not answer the reporter")


def _until_acknowledged(reporter: Reporter) -> None:
    with reporter._changed:
        if not reporter._changed.wait_for(lambda: not reporter._ring, _PATIENCE):
            raise TimeoutError("the monitor does not acknowledge")


# --------------------------------------------------------------------------------------- as in a run


def _paced(server: served.Served, records: Sequence[StepStats]) -> list[Row]:
    """A record every 5 ms: what the training's thread pays, and when the record is durable."""
    calls, listens, delays = [], [], []
    reporter = Reporter(server.target, _hello(records[0], len(records)))
    try:
        _until_live(reporter)
        for record in records:
            before = time.perf_counter()
            reporter.report(record)
            reported = time.perf_counter()
            _until_acknowledged(reporter)
            durable = time.perf_counter()
            reporter.directives()
            listens.append((time.perf_counter() - durable) * 1e6)
            calls.append((reported - before) * 1e6)
            delays.append((durable - before) * 1e3)
            time.sleep(max(0.0, before + _PACE_SECONDS - time.perf_counter()))
    finally:
        reporter.close()
    return [
        Row(
            section="stream",
            name="report(), hot thread, p50",
            value=quantile(calls, 0.5),
            unit="us",
            note="goal 10 us a step",
        ),
        Row(section="stream", name="report(), p99", value=quantile(calls, 0.99), unit="us"),
        Row(section="stream", name="directives(), p50", value=quantile(listens, 0.5), unit="us"),
        Row(
            section="stream",
            name="report() to durable and acknowledged, p50",
            value=quantile(delays, 0.5),
            unit="ms",
        ),
        Row(
            section="stream",
            name="the same, p99",
            value=quantile(delays, 0.99),
            unit="ms",
            note="goal 50 ms",
        ),
    ]
