"""What one run or peer sends, however much or wrong, is not the others' business.

Server and clients share a loop here, so that a turn of it can be counted.
"""

import asyncio
import contextlib
import itertools
import math
import threading
from types import SimpleNamespace

import grpc
import pytest

from forkcast_monitor import server as monitor_server
from forkcast_monitor.__main__ import RECEIVE_BYTES
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.streams import _TURN_SECONDS as TURN_SECONDS
from forkcast_monitor.streams import Limits, Quota
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.access import peer_address
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from tests.waiting import HANG_SECONDS, until_async

from .conftest import Talker, answer, registration, statistics
from .in_loop import hello, refusal, served


def test_a_flood_takes_turns_with_the_other_runs(tmp_path, monkeypatch):
    """By a clock on which each slice takes one turn's time: what is folded of the flood within a turn
    of the loop is a slice or two, on any machine, not its whole queue, nor a whole batch of 300.
    """
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * TURN_SECONDS, monotonic=lambda: 0.0)
    monkeypatch.setattr(monitor_server, "time", clock)
    row = stats_to_wire(statistics("flood", 1)[0])
    folded, a_turn = [], []

    async def play():
        async with served(tmp_path) as (runs, connect):
            quiet, loud = MonitorStub(connect()), MonitorStub(connect())
            for uid in ("flood", "quiet"):
                await quiet.RegisterRun(registration(uid, total_steps=10**8))
            flood, calm = await hello(loud, "flood"), await hello(quiet, "quiet")
            original = monitor_server._accept

            def watched(run, part):
                if run.run_uid == "flood":
                    folded.append(len(part))
                return original(run, part)

            monkeypatch.setattr(monitor_server, "_accept", watched)

            async def pour():
                for seq in itertools.count(1):
                    rows = [pb.StepStats() for _ in range(300)]
                    for step, one in enumerate(rows, (seq - 1) * 300):
                        one.CopyFrom(row)
                        one.step = step
                    await flood.write(pb.StatsBatch(seq=seq, stats=rows))  # heeding no credit

            async def count():
                while True:
                    before = len(folded)
                    await asyncio.sleep(0)
                    a_turn.append(sum(folded[before:]))

            endless = [asyncio.create_task(pour()), asyncio.create_task(count())]
            for one in statistics("quiet", 60):
                await calm.write(pb.StatsBatch(seq=one.step + 1, stats=[stats_to_wire(one)]))
                await answer(calm)
            assert runs.find("quiet").opened.next_step == 60
            for one in endless:
                one.cancel()
            flood.cancel()

    asyncio.run(play())
    assert sum(folded) > 300
    assert max(a_turn) <= 3 * monitor_server._SLICE


def test_a_batch_too_large_ends_its_stream_only(tmp_path):
    row = stats_to_wire(statistics("a", 1)[0])
    row.attention_entropy.extend([0.5] * (RECEIVE_BYTES // 8))

    async def play():
        async with served(tmp_path) as (runs, connect):
            stub, other = MonitorStub(connect()), connect()
            for uid in ("a", "b"):
                await stub.RegisterRun(registration(uid))
            calm, call = await hello(MonitorStub(other), "b"), await hello(stub, "a")
            await call.write(pb.StatsBatch(seq=1, stats=[row]))
            assert await refusal(call) == "RESOURCE_EXHAUSTED"
            await calm.write(pb.StatsBatch(seq=1, stats=[stats_to_wire(statistics("b", 1)[0])]))
            assert (await answer(calm)).seq == 1
            calm.cancel()
            await Talker(other, "a", statistics("a", 5)).talk()  # and the run itself goes on
            assert runs.find("a").opened.next_step == 5

    asyncio.run(play())


def test_streams_are_bounded_by_run_and_by_peer(tmp_path):
    async def play():
        async with served(tmp_path, "127.0.0.1:0", per_peer=6, per_run=3) as (_, connect):
            stub = MonitorStub(connect())
            for n in range(4):
                await stub.RegisterRun(registration(f"r{n}"))
            calls = [await hello(stub, "r0") for _ in range(3)]
            fourth = stub.Report()
            await fourth.write(pb.StatsBatch(hello=pb.Hello(run_uid="r0")))
            assert await refusal(fourth) == "RESOURCE_EXHAUSTED"
            calls += [await hello(stub, f"r{n}") for n in (1, 2, 3)]
            # another connection of the same address is the same peer
            watch = MonitorStub(connect()).WatchTriggers(pb.WatchTriggersRequest(run_uid="r0"))
            assert await refusal(watch) == "RESOURCE_EXHAUSTED"
            calls.pop().cancel()

            async def again():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await hello(stub, "r1")

            calls.append(await until_async(again, "its place"))  # once the server has heard
            for call in calls:
                call.cancel()

    asyncio.run(play())


def test_a_stream_that_never_says_hello_ends(tmp_path):
    async def play():
        async with served(tmp_path, hello_seconds=0.05) as (_, connect):
            assert await refusal(MonitorStub(connect()).Report()) == "DEADLINE_EXCEEDED"

    asyncio.run(play())


def test_a_stream_that_begins_with_something_else_ends(tmp_path):
    async def play():
        async with served(tmp_path) as (_, connect):
            call = MonitorStub(connect()).Report()
            await call.write(pb.StatsBatch(seq=1))
            assert await refusal(call) == "FAILED_PRECONDITION"

    asyncio.run(play())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0])
def test_strange_numbers_of_one_run_leave_another_alone(tmp_path, value):
    rows = {"odd": statistics("odd", 80), "even": statistics("even", 80)}

    async def play(folder, uids):
        async with served(folder) as (runs, connect):
            channel = connect()
            for uid in uids:
                await MonitorStub(channel).RegisterRun(registration(uid))
            talkers = [Talker(channel, uid, rows[uid]) for uid in uids]
            await asyncio.gather(*(one.talk() for one in talkers))
            return runs.find("even").opened.detector.state()

    for row in rows["odd"][40:]:
        object.__setattr__(row, "loss", value)
    (tmp_path / "one").mkdir()
    (tmp_path / "both").mkdir()
    lonely = asyncio.run(play(tmp_path / "one", ["even"]))
    assert asyncio.run(play(tmp_path / "both", ["odd", "even"])) == lonely


def test_a_run_whose_files_are_broken_is_the_only_one_that_fails(tmp_path):
    async def play():
        async with served(tmp_path) as (_, connect):
            channel = connect()
            for uid in ("a", "b"):
                await MonitorStub(channel).RegisterRun(registration(uid))
                await Talker(channel, uid, statistics(uid, 5)).talk()
        attempts = tmp_path / "state" / "runs" / "a" / "monitor" / "attempts.json"
        attempts.unlink()
        attempts.mkdir()  # cannot be read; text that is damaged would be put aside
        (tmp_path / "state" / "runs" / "c").mkdir()
        (tmp_path / "state" / "runs" / "c" / "registration.json").write_text("{")
        async with served(tmp_path) as (_, connect):
            stub = MonitorStub(connect())
            listed = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert [(one.run_uid, one.next_step) for one in listed] == [("b", 5)]
            call = stub.Report()
            await call.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")))
            assert await refusal(call) == "FAILED_PRECONDITION"
            await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))
            assert (await stub.RegisterRun(registration("a"))).created
            call = await hello(stub, "a")
            call.cancel()

    asyncio.run(play())


def test_credit_falls_as_streams_are_opened():
    quota = Quota(Limits())
    with contextlib.ExitStack() as stack:
        seen = []
        for n in range(200):
            stack.enter_context(quota.stream(f"ipv4:10.0.0.{n}:1", report=True))
            seen.append(quota.credit())
    assert seen[0] == seen[3] == 16
    assert seen[-1] == 1
    assert seen == sorted(seen, reverse=True)
    assert quota.credit() == 16


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:4567", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%5D:4567", "%5Bfe80::1%5D"),
        ("unix:", ""),
        ("unix:/a/b.sock", ""),
    ],
)
def test_a_peer_is_its_address(peer, address):
    assert peer_address(peer) == address


def test_a_busy_run_is_listed_as_it_stood_and_nobody_waits_for_it(tmp_path):
    """Regression: while a run folded its history again, the operator heard of no run at all."""

    async def play():
        async with served(tmp_path) as (runs, connect):
            stub = MonitorStub(connect())
            for name in "ab":
                await stub.RegisterRun(registration(name))
            call = await hello(stub, "a")
            rows = [stats_to_wire(one) for one in statistics("a", 9)]
            await call.write(pb.StatsBatch(seq=1, stats=rows))
            await answer(call)
            async with runs.find("a").lock, asyncio.timeout(HANG_SECONDS):
                listed = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert [(one.run_uid, one.next_step, one.streams) for one in listed] == [
                ("a", 9, 1),
                ("b", 0, 0),
            ]

    asyncio.run(play())


def test_a_namespace_that_folds_histories_without_end_leaves_threads_to_the_others(
    tmp_path, monkeypatch
):
    gate, begun, real = threading.Event(), [], WatchedRun.hello

    def slow(run, *given):
        if run.run_uid.startswith("many"):
            begun.append(run.run_uid)
            gate.wait(HANG_SECONDS)
        return real(run, *given)

    monkeypatch.setattr(WatchedRun, "hello", slow)

    async def play():
        async with served(tmp_path) as (_, connect):
            stub = MonitorStub(connect())
            await stub.RegisterRun(registration("other", namespace="lab"))
            busy = []
            for n in range(8):
                await stub.RegisterRun(registration(f"many{n}"))
                busy.append(stub.Report())
                await busy[-1].write(pb.StatsBatch(hello=pb.Hello(run_uid=f"many{n}")))
            async with asyncio.timeout(HANG_SECONDS):
                await hello(stub, "other")
            assert len(begun) <= 1
            gate.set()
            for one in busy:
                await answer(one)

    asyncio.run(play())
