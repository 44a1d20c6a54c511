"""What runs may take of the machine: file descriptors, and rows that survive it."""

import asyncio
import contextlib
import json
import os
import urllib.request
from pathlib import Path

import pytest

from forkcast_monitor.history import History
from forkcast_monitor.metrics import OVER_BUDGET
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.runs import Runs
from forkcast_monitor.server import Monitor
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.statistics import read_history, tail_of
from tests.ports import free_port
from tests.waiting import until_async

from .conftest import RULES, Process, Talker, answer, registration, statistics
from .in_loop import hello, listening, refusal, served


def test_more_runs_than_files_may_be_open(tmp_path, connect):
    """100 runs with 64 descriptors: before, two were held for each run for ever."""
    port = free_port()
    arguments = ("--state", "state", "--listen", f"unix:{tmp_path}/m.sock")
    monitor = Process(tmp_path, *arguments, "--metrics-port", str(port))
    monitor.prefix = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    monitor.start()
    uids = [f"r{n}" for n in range(100)]

    async def play():
        async with connect() as (channel, stub):
            for uid in uids:
                await stub.RegisterRun(registration(uid), wait_for_ready=True)
                await Talker(channel, uid, statistics(uid, 3)).talk()
            listed = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert {one.next_step for one in listed} == {3}

    try:
        asyncio.run(play())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            assert b"forkcast_monitor_runs 100" in page.read()
        assert monitor.stop() == 0
    finally:
        monitor.kill()
    for uid in uids:
        rows = read_history(tmp_path / f"state/runs/{uid}/statistics")
        assert [one["step"] for one in rows] == [0, 1, 2]


def open_files():
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found.append(str(one.readlink()))
    return found


def test_a_run_that_nobody_reports_for_holds_no_descriptor(tmp_path):
    async def play():
        async with served(tmp_path) as (runs, connect):
            channel = connect()
            await MonitorStub(channel).RegisterRun(registration("a"))
            await Talker(channel, "a", statistics("a", 5)).talk()
            folder = str(runs.find("a").opened.history.folder)

            async def closed():
                return not [one for one in open_files() if one.startswith(folder)]

            await until_async(closed, "the end of its files")

    asyncio.run(play())


def test_rows_are_on_the_disk_before_their_ack_at_one_sync_a_batch(tmp_path, monkeypatch):
    synced, original = [], os.fdatasync

    def counted(descriptor):
        original(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", counted)
    rows = [stats_to_wire(one) for one in statistics("a", 100)]

    async def play():
        async with served(tmp_path) as (_, connect):
            stub = MonitorStub(connect())
            await stub.RegisterRun(registration("a"))
            call = await hello(stub, "a")
            tail = tail_of(tmp_path / "state/runs/a/statistics")
            for seq in range(1, 6):
                await call.write(pb.StatsBatch(seq=seq, stats=rows[(seq - 1) * 20 : seq * 20]))
                assert (await answer(call)).seq == seq
                assert synced[-1] == tail.stat().st_size
            assert len(synced) == 5
            call.cancel()

    asyncio.run(play())


def test_a_row_that_cannot_reach_the_disk_is_not_acknowledged(tmp_path, monkeypatch):
    rows = statistics("a", 10)

    async def play():
        async with served(tmp_path) as (runs, connect):
            channel = connect()
            stub = MonitorStub(channel)
            await stub.RegisterRun(registration("a"))
            call = await hello(stub, "a")

            def broken(_descriptor):
                raise OSError(5, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr(os, "fdatasync", broken)
                await call.write(pb.StatsBatch(seq=1, stats=[stats_to_wire(rows[0])]))
                with pytest.raises(Exception, match="history not written"):
                    await answer(call)
            await Talker(channel, "a", rows).talk()
            assert runs.find("a").opened.next_step == 10

    asyncio.run(play())


def test_the_monitor_of_one_run_stays_for_its_trainers_last_step(tmp_path):
    """Both are told to leave at the same moment, and the trainer takes a step more."""
    given = Registration(
        run_uid="a", name="x", namespace="", uncertainty=RULES, mode="Enforce", total_steps=100
    )
    rows = [stats_to_wire(one) for one in statistics("a", 2)]

    async def play():
        runs = Runs(None)
        run = WatchedRun(given.config(), "a", tmp_path / "monitor", History(tmp_path / "s"))
        runs.host(given, run)
        monitor = Monitor(runs)
        async with listening(monitor, f"unix:{tmp_path}/m.sock") as channel:
            call = await hello(MonitorStub(channel), "a")
            await call.write(pb.StatsBatch(seq=1, stats=rows[:1]))
            await answer(call)
            leaving = asyncio.create_task(monitor.drain())
            await asyncio.sleep(0)
            await call.write(pb.StatsBatch(seq=2, stats=rows[1:]))
            assert (await answer(call)).seq == 2
            assert not leaving.done()
            await call.done_writing()
            await leaving
        await runs.close()
        assert run.next_step == 2

    asyncio.run(play())
    assert [one["step"] for one in read_history(tmp_path / "s")] == [0, 1]


def test_a_triggers_log_line_says_whose_it_is(start_monitor, connect):
    monitor = start_monitor()

    async def play():
        async with connect() as (channel, stub):
            await stub.RegisterRun(registration("a", "team"), wait_for_ready=True)
            await Talker(channel, "a", statistics("a", 100, spike=80)).talk()

    asyncio.run(play())
    logged = [json.loads(line) for line in monitor.logged().splitlines() if line.startswith("{")]
    fired = [one for one in logged if one["event"] == "monitor.trigger"]
    assert fired
    assert {(one["run"], one["namespace"]) for one in fired} == {("run-a", "team")}


def test_a_run_over_its_budget_of_disk_is_refused_counted_and_said_and_the_others_go_on(tmp_path):
    async def play():
        async with served(tmp_path) as (runs, connect):
            channel = connect()
            stub = MonitorStub(channel)
            for uid in ("a", "b"):
                await stub.RegisterRun(registration(uid))
                await Talker(channel, uid, statistics(uid, 20)).talk()
            runs.find("a").opened.disk_bytes = 1000
            call = await hello(stub, "a")
            row = stats_to_wire(statistics("a", 21)[20])
            await call.write(pb.StatsBatch(seq=1, stats=[row]))
            assert await refusal(call) == "RESOURCE_EXHAUSTED"
            await Talker(channel, "b", statistics("b", 40)).talk()
            return runs.find("a").series.labels

    labels = asyncio.run(play())
    assert OVER_BUDGET.labels(*labels, "disk")._value.get() == 1


def test_gaps_ahead_are_bounded_and_a_refused_batch_leaves_none(tmp_path):
    async def play():
        async with served(tmp_path) as (runs, connect):
            stub = MonitorStub(connect())
            await stub.RegisterRun(registration("a", total_steps=100_000))
            call = await hello(stub, "a")
            gaps = [pb.Gap(first_step=2 * n + 1, last_step=2 * n + 1) for n in range(1, 300)]
            await call.write(pb.StatsBatch(seq=1, gaps=gaps))
            assert await refusal(call) == "RESOURCE_EXHAUSTED"
            assert not runs.find("a").opened._lost

    asyncio.run(play())
