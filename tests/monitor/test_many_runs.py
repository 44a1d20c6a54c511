"""One monitor, many runs: each is judged as if it were alone, whatever happens around it."""

import asyncio
import json
import signal
import urllib.request

import grpc
import pytest

from forkcast_monitor.detector import Detector
from forkcast_monitor.registration import Registration
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import read_history, row_to_stats, stats_row
from tests.ports import free_port

from .conftest import (
    RULES,
    Talker,
    alone,
    answer,
    newest_snapshot,
    registration,
    statistics,
)

RUNS, STEPS = 50, 130


def uid(n):
    return f"{n:08d}-aaaa-bbbb"


def test_fifty_runs_are_judged_as_if_each_were_alone(
    start_monitor, connect, tmp_path_factory, tmp_path
):
    rows = {
        uid(n): statistics(uid(n), STEPS, seed=n, spike=90 if n % 2 else None) for n in range(RUNS)
    }
    monitor = start_monitor()

    async def first_half():
        async with connect() as (channel, stub):
            for one in rows:
                reply = await stub.RegisterRun(registration(one), wait_for_ready=True)
                assert reply.created
            talkers = [Talker(channel, one, rows[one], seed=n) for n, one in enumerate(rows)]
            await asyncio.gather(
                *(
                    one.talk(until=STEPS // 2 + n)
                    for n, one in zip(range(-20, RUNS - 20), talkers, strict=True)
                )
            )

    async def the_rest():
        async with connect() as (channel, stub):
            for one in rows:  # what was registered before the kill is known, and stays so
                assert not (await stub.RegisterRun(registration(one), wait_for_ready=True)).created
            await asyncio.gather(
                *(Talker(channel, one, rows[one], seed=n).talk() for n, one in enumerate(rows))
            )
            listed = await stub.ListRuns(pb.ListRunsRequest())
            triggers = {one: [] for one in rows}
            watch = stub.WatchTriggers(pb.WatchTriggersRequest())
            for _ in range(sum(one.triggers for one in listed.runs)):
                event = await watch.read()
                triggers[event.trigger.run_uid].append(event)
            watch.cancel()
            return listed, triggers

    asyncio.run(first_half())
    monitor.kill()
    monitor.start()
    listed, triggers = asyncio.run(the_rest())
    assert monitor.stop() == 0
    assert [one.next_step for one in listed.runs] == [STEPS] * RUNS
    fired = 0
    for one, its in rows.items():
        expected, state = alone(tmp_path_factory.mktemp("alone"), one, its)
        names = [f"e{event.trigger.epoch}-t{event.trigger.step}" for event in triggers[one]]
        assert names == expected
        assert [event.seq for event in triggers[one]] == list(range(1, len(expected) + 1))
        got = newest_snapshot(tmp_path / "state" / "runs" / one / "monitor")
        assert json.dumps(got, sort_keys=True) == json.dumps(state, sort_keys=True)
        fired += len(expected)
    assert fired >= RUNS // 2


def test_five_hundred_runs_keep_every_row_over_a_kill(start_monitor, connect, tmp_path):
    """As many as one process is meant for, each with a stream of its own at the same time."""
    runs, steps = 500, 24
    rows = {uid(n): statistics(uid(n), steps, seed=n) for n in range(runs)}
    monitor = start_monitor()

    async def talk(until, *, created):
        async with connect() as (channel, stub), connect() as (other, _):
            for one in rows:
                reply = await stub.RegisterRun(registration(one), wait_for_ready=True)
                assert reply.created == created
            talkers = [
                Talker((channel, other)[n % 2], one, its, seed=n)
                for n, (one, its) in enumerate(rows.items())
            ]
            await asyncio.gather(*(one.talk(until) for one in talkers))
            listed = await stub.ListRuns(pb.ListRunsRequest())
            assert [one.next_step for one in listed.runs] == [until] * runs

    asyncio.run(talk(steps // 2, created=True))
    monitor.kill()
    monitor.start()
    asyncio.run(talk(steps, created=False))
    assert monitor.stop() == 0
    given = Registration(
        run_uid="any", name="x", namespace="y", uncertainty=RULES, mode="Enforce", total_steps=0
    )
    config = given.config()
    for one, its in rows.items():
        folder = tmp_path / "state" / "runs" / one
        found = read_history(folder / "statistics")
        assert [stats_row(row_to_stats(row)) for row in found] == [stats_row(row) for row in its]
        detector = Detector(config, one)
        for row in its:
            detector.fold(row)
        got = newest_snapshot(folder / "monitor")["detector"]
        assert got == json.loads(json.dumps(detector.state()))


def test_a_run_is_registered_before_it_reports_and_forgotten_after(
    start_monitor, connect, tmp_path
):
    monitor = start_monitor()
    rows = statistics("a", 60)

    async def talk():
        async with connect() as (channel, stub):
            call = stub.Report(wait_for_ready=True)
            await call.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await answer(call)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "not registered yet" in refused.value.details()

            waiting = asyncio.create_task(Talker(channel, "a", rows).talk())
            assert (await stub.RegisterRun(registration("a"))).created
            await waiting
            (one,) = (await stub.ListRuns(pb.ListRunsRequest(run_uids=["a", "b"]))).runs
            assert (one.name, one.namespace, one.mode) == ("run-a", "team", "Enforce")
            assert (one.next_step, one.total_steps, one.tokens) == (60, 1000, 59 * 64)
            assert one.loss == rows[-1].loss
            assert one.seconds_since_report >= 0

            assert (await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))).existed
            assert not (await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))).existed
            for asked in (
                stub.GetWindow(pb.GetWindowRequest(run_uid="a")),
                stub.PostDirective(pb.PostDirectiveRequest(directive={"run_uid": "a", "id": "x"})),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await asked
                assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            assert not (await stub.ListRuns(pb.ListRunsRequest())).runs

            assert (await stub.RegisterRun(registration("a"))).created  # and it starts from nothing
            (one,) = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert one.next_step == 0

    asyncio.run(talk())
    assert monitor.stop() == 0
    assert not list((tmp_path / "state" / "forgotten").iterdir())


def test_a_stream_that_is_open_when_its_run_is_forgotten_ends(start_monitor, connect):
    start_monitor()

    async def talk():
        async with connect() as (_, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            call = stub.Report()
            await call.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")))
            await answer(call)
            await stub.ForgetRun(pb.ForgetRunRequest(run_uid="a"))
            row = stats_to_wire(statistics("a", 1)[0])
            await call.write(pb.StatsBatch(seq=1, stats=[row]))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await answer(call)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(talk())


WRONG = [
    ({"run_uid": ""}, "INVALID_ARGUMENT", "run_uid"),
    ({"run_uid": "../../etc"}, "INVALID_ARGUMENT", "run_uid"),
    ({"run_uid": "a" * 65}, "INVALID_ARGUMENT", "run_uid"),
    ({"name": "A"}, "INVALID_ARGUMENT", "name"),
    ({"namespace": "a/b"}, "INVALID_ARGUMENT", "namespace"),
    ({"mode": "Disabled"}, "INVALID_ARGUMENT", "mode"),
    ({"uncertainty_json": "{"}, "INVALID_ARGUMENT", "uncertainty_json"),
    ({"uncertainty_json": '{"window": 0}'}, "INVALID_ARGUMENT", "uncertainty_json.window"),
    ({"uncertainty_json": '{"windw": 64}'}, "INVALID_ARGUMENT", "uncertainty_json.windw"),
    ({"uncertainty_json": " " * 17000}, "INVALID_ARGUMENT", "uncertainty_json"),
    ({"namespace": "other"}, "ALREADY_EXISTS", "run_uid"),
]


def test_a_wrong_registration_names_its_field_and_changes_nothing(start_monitor, connect):
    start_monitor()

    async def talk():
        async with connect() as (_, stub):
            await stub.RegisterRun(registration("good"), wait_for_ready=True)
            for change, code, field in WRONG:
                wrong = registration("good")
                for name, value in change.items():
                    setattr(wrong, name, value)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.RegisterRun(wrong)
                assert refused.value.code().name == code
                assert refused.value.details().startswith(field)
            listed = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert [(one.run_uid, one.namespace) for one in listed] == [("good", "team")]

    asyncio.run(talk())


def test_a_run_that_adopts_records_is_registered_under_its_own_name(
    start_monitor, connect, tmp_path
):
    """Regression: it was refused, so that a run with spec.storage.adoptFrom was never watched."""
    metrics = free_port()
    start_monitor("--metrics-port", str(metrics))

    async def talk():
        async with connect() as (_, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            call = stub.Report()
            batch = pb.StatsBatch(hello=pb.Hello(run_uid="a"))
            batch.stats.extend(stats_to_wire(one) for one in statistics("a", 9))
            await call.write(batch)
            await answer(call)
            adopting = registration("a")
            adopting.name = "next"
            assert not (await stub.RegisterRun(adopting)).created
            (one,) = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert (one.name, one.next_step, one.streams) == ("next", 9, 1)
            call.cancel()

    asyncio.run(talk())
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
        text = page.read().decode()
    assert 'namespace="team",run="next"' in text
    assert 'run="run-a"' not in text


def test_new_rules_judge_the_history_anew_and_keep_what_fired(start_monitor, connect, tmp_path):
    start_monitor()
    rows = statistics("a", 120, spike=90)

    async def talk():
        async with connect() as (channel, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            await Talker(channel, "a", rows).talk()
            before = (await stub.ListRuns(pb.ListRunsRequest())).runs[0]
            other = registration("a")
            other.uncertainty_json = json.dumps({"window": 64, "warmupSteps": 200})
            assert not (await stub.RegisterRun(other)).created
            after = (await stub.ListRuns(pb.ListRunsRequest())).runs[0]
            assert (after.next_step, after.triggers) == (before.next_step, before.triggers)
            assert after.z != before.z
            return before.triggers

    assert asyncio.run(talk()) > 0


def test_a_mode_keeps_from_the_trainer_what_must_not_reach_it(start_monitor, connect):
    start_monitor()
    collapse = {"id": "collapse/1", "collapse": {"branch": "b", "epoch": 1}}
    hold = {"id": "hold/b", "hold": {"branch": "b", "deadline_seconds": 1}}
    cases = [
        ("Observe", hold, False),
        ("Observe", collapse, False),
        ("Observe", {"id": "c", "checkpoint_now": {}}, True),
        ("DryRun", hold, True),
        ("DryRun", collapse, False),
        ("Enforce", collapse, True),
    ]

    async def talk():
        async with connect() as (_, stub):
            for mode, what, passes in cases:
                await stub.RegisterRun(registration("a", mode=mode), wait_for_ready=True)
                asked = stub.PostDirective(
                    pb.PostDirectiveRequest(directive={"run_uid": "a", **what})
                )
                if passes:
                    await asked
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await asked
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            call = stub.Report()
            await call.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")))
            told = {one.id for one in (await answer(call)).directives}
            assert told == {"c", "collapse/1"}  # the collapse ended the hold
            directive = {"run_uid": "a", "id": "d", "checkpoint_now": {}}
            await stub.PostDirective(pb.PostDirectiveRequest(directive=directive))
            assert [one.id for one in (await answer(call)).directives] == ["d"]  # unasked
            call.cancel()

    asyncio.run(talk())


def test_sigterm_drains(start_monitor, connect):
    monitor = start_monitor()

    async def talk():
        async with connect() as (_, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            watch = stub.WatchTriggers(pb.WatchTriggersRequest())
            report = stub.Report()
            await report.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")))
            await answer(report)
            monitor.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watch.read()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await report.code() is not grpc.StatusCode.OK

    asyncio.run(talk())
    assert monitor.stop() == 0
