"""Every integer that a peer can send, at its extremes: whatever becomes of it, the calls of another
tenant are answered, nothing fails inside the service, and the state on disk opens again.

A value that is walked, stored unbounded or used as a size shows as a call without an answer, as
INTERNAL, or as a folder that does not open.
"""

import asyncio
import json

import grpc
import pytest

from forkcast_monitor.attempts import MOST_KEPT, Attempt, Attempts, TooManyAttemptsError
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.statistics import read_history
from tests.waiting import HANG_SECONDS
from tests.wire_integers import cases, name_of, put

from .conftest import RULES, Talker, alone, answer, registration, statistics
from .in_loop import hello, served

#: Nobody waits so long for an answer; a hang shows as a failure, not as a test that never ends.
_SERVICE = pb.DESCRIPTOR.services_by_name["Monitor"]


def valid(method, uid):
    """A request of each method that is answered with OK."""
    row = stats_to_wire(statistics(uid, 1)[0])
    return {
        "RegisterRun": lambda: registration(uid),
        "ForgetRun": lambda: pb.ForgetRunRequest(run_uid="unknown"),
        "ListRuns": lambda: pb.ListRunsRequest(run_uids=[uid]),
        "Report": lambda: pb.StatsBatch(
            hello=pb.Hello(run_uid=uid, total_steps=1000),
            stats=[row],
            gaps=[pb.Gap(first_step=5, last_step=6)],
            seq=1,
        ),
        "WatchTriggers": lambda: pb.WatchTriggersRequest(run_uid=uid),
        "ListEvents": lambda: pb.ListEventsRequest(run_uid=uid),
        "GetWindow": lambda: pb.GetWindowRequest(run_uid=uid),
        "PostDirective": lambda: pb.PostDirectiveRequest(
            directive=pb.Directive(id="d", run_uid=uid, checkpoint_now={})
        ),
    }[method.name]()


async def ended(stub, method, request):
    """The code that a call ends with; OK too for a stream that goes on after its answer."""
    call = getattr(stub, method.name)
    try:
        async with asyncio.timeout(HANG_SECONDS):
            if method.client_streaming:
                talk = call()
                await talk.write(request)
                await answer(talk)
                talk.cancel()
            elif method.server_streaming:
                talk = call(request)
                await talk.wait_for_connection()
                talk.cancel()
            else:
                await call(request)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize(
    "method",
    [one for one in _SERVICE.methods if cases(one.input_type)],
    ids=lambda one: one.name,
)
def test_another_tenants_acks_go_on(tmp_path, method):
    tried = cases(method.input_type)
    rows = statistics("calm", len(tried) + 1)

    async def play():
        async with served(tmp_path, per_peer=10_000) as (_, connect):
            calm, stub = MonitorStub(connect()), MonitorStub(connect())
            await calm.RegisterRun(registration("calm", "other"))
            stream = await hello(calm, "calm")
            for at, (path, value) in enumerate(tried):
                uid = f"r{at}"
                await stub.RegisterRun(registration(uid))
                request = valid(method, uid)
                assert await ended(stub, method, request) == "OK"
                put(request, path, value)
                code = await ended(stub, method, request)
                assert code not in ("INTERNAL", "UNKNOWN"), (name_of(path), value, code)
                async with asyncio.timeout(HANG_SECONDS):
                    row = stats_to_wire(rows[at])
                    await stream.write(pb.StatsBatch(seq=at + 1, stats=[row]))
                    assert (await answer(stream)).seq == at + 1, (name_of(path), value)
            stream.cancel()
        async with served(tmp_path) as (runs, connect):  # all that was stored opens again
            listed = await MonitorStub(connect()).ListRuns(pb.ListRunsRequest())
            assert len(listed.runs) == len(tried) + 1
            calm = runs.find("calm").opened
            assert calm.next_step == len(tried)
            return calm.detector.state()

    state = asyncio.run(play())
    _, undisturbed = alone(tmp_path / "alone", "calm", rows[: len(tried)])
    assert json.loads(json.dumps(state)) == undisturbed["detector"]


@pytest.mark.parametrize(
    "said",
    [
        {"epoch": 2},
        {"epoch": 10_001},
        {"epoch": 2**32 - 1},
        {"attempt": 10_001},
        {"attempt": 1, "base_step": 1},
        {"attempt": 1, "start_step": 1001},
        {"attempt": 1, "total_steps": 100_000_001},
    ],
    ids=str,
)
def test_a_hello_is_bounded_by_what_is_known_before_it_is_stored(tmp_path, said):
    async def play():
        async with served(tmp_path) as (runs, connect):
            stub = MonitorStub(connect())
            await stub.RegisterRun(registration("a"))
            (await hello(stub, "a")).cancel()
            batch = pb.StatsBatch(hello=pb.Hello(run_uid="a", **said))
            method = _SERVICE.methods_by_name["Report"]
            assert await ended(stub, method, batch) == "INVALID_ARGUMENT"
            await Talker(connect(), "a", statistics("a", 5)).talk()  # the run itself goes on
            assert runs.find("a").opened.next_step == 5

    asyncio.run(play())
    attempts = json.loads((tmp_path / "state/runs/a/monitor/attempts.json").read_text())
    assert [(one["epoch"], one["attempt"]) for one in attempts] == [(0, 0)]


def test_a_folder_that_was_poisoned_before_opens_and_the_run_goes_on(tmp_path):
    """As a monitor without these bounds left it: an attempt, a snapshot and rows of epoch 2^32-1,
    and a row in the tail that no chunk can hold.
    """
    worst = 2**32 - 1
    rows = statistics("a", 40)

    async def before():
        async with served(tmp_path) as (_, connect):
            channel = connect()
            await MonitorStub(channel).RegisterRun(registration("a"))
            await Talker(channel, "a", rows).talk(until=20)

    asyncio.run(before())
    folder = tmp_path / "state/runs/a"
    attempts = json.loads((folder / "monitor/attempts.json").read_text())
    attempts.append({"epoch": worst, "attempt": worst, "start_step": 0, "base_step": 2**63})
    (folder / "monitor/attempts.json").write_text(json.dumps(attempts))
    snapshot = next((folder / "monitor/snapshots").glob("*.json"))
    for n in range(9):  # more than are kept: none of them may push the sound ones out
        snapshot.with_name(f"e{worst}-a000000-{n:012d}.json").write_bytes(snapshot.read_bytes())
    chunk = next((folder / "statistics").glob("*.parquet"))
    chunk.with_name(f"e{worst}-a0-000000000000.parquet").write_bytes(chunk.read_bytes())
    row = {**read_history(folder / "statistics")[-1], "step": 20}
    with (folder / "statistics.tail.jsonl").open("a") as tail:
        for poison in ({"tokens": 2**63}, {"epoch": worst}, {"step": 2**64}, {"step": None}):
            tail.write(json.dumps({**row, **poison}) + "\n")

    async def after():
        async with served(tmp_path) as (_, connect):
            stub = MonitorStub(connect())
            (listed,) = (await stub.ListRuns(pb.ListRunsRequest())).runs
            assert (listed.epoch, listed.next_step) == (0, 20)
            await Talker(connect(), "a", rows).talk()

    asyncio.run(after())
    assert [one["step"] for one in read_history(folder / "statistics")] == list(range(40))
    _, undisturbed = alone(tmp_path / "alone", "a", rows)
    newest = max((folder / "monitor/snapshots").glob("e000*.json"))
    assert (
        json.loads(newest.read_bytes().partition(b"\n")[2])["detector"] == undisturbed["detector"]
    )


def test_a_record_beyond_what_a_chunk_holds_is_refused_by_name_and_the_stream_is_sound(tmp_path):
    rows = statistics("a", 1100)

    async def play():
        async with served(tmp_path) as (runs, connect):
            stub = MonitorStub(connect())
            await stub.RegisterRun(registration("a", total_steps=2000))
            await Talker(connect(), "a", rows).talk(until=1000)
            poison = stats_to_wire(rows[1000])
            poison.tokens = 2**63
            call = await hello(stub, "a")
            await call.write(pb.StatsBatch(seq=1, stats=[poison]))
            with pytest.raises(grpc.aio.AioRpcError, match="tokens: at most"):
                await answer(call)
            await Talker(connect(), "a", rows).talk()
            assert runs.find("a").opened.next_step == len(rows)

    asyncio.run(play())
    history = read_history(tmp_path / "state/runs/a/statistics")
    assert [one["step"] for one in history] == list(range(len(rows)))


def test_a_run_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path, monkeypatch):
    async def play():
        async with served(tmp_path) as (runs, connect):
            for uid in ("a", "b", "c"):
                await MonitorStub(connect()).RegisterRun(registration(uid))
                await Talker(connect(), uid, statistics(uid, 5)).talk()

            def fails():
                raise OverflowError("int too big to convert")

            monkeypatch.setattr(runs.find("a").opened, "close", fails)

    asyncio.run(play())
    for uid in ("b", "c"):
        assert list((tmp_path / f"state/runs/{uid}/statistics").glob("*.parquet"))


def test_a_tail_that_no_chunk_can_hold_is_kept_and_costs_no_record(tmp_path, monkeypatch):
    given = Registration(
        run_uid="a", name="x", namespace="y", uncertainty=RULES, mode="Enforce", total_steps=0
    )
    run = WatchedRun(given.config(), "a", tmp_path / "m", History(tmp_path / "s"))
    run.hello(0, 0, 0, 5000)
    tries = []

    def overflows(*_):
        tries.append(run.next_step)
        raise OverflowError("int too big to convert")

    with monkeypatch.context() as patch:
        patch.setattr("forkcast_monitor.history.write_columns", overflows)
        for one in statistics("a", 1200):
            run.accept(one)
    assert len(tries) < 10  # each try reads the whole tail
    run.close()
    assert [one["step"] for one in read_history(tmp_path / "s")] == list(range(1200))


def test_attempts_that_took_nothing_but_what_was_taken_again_are_dropped(tmp_path):
    attempts = Attempts(tmp_path / "a.json")
    for number in range(50):  # a trainer that always dies at the same step
        attempts.add(Attempt(0, number, 0 if number == 0 else 10, 0))
    assert len(json.loads((tmp_path / "a.json").read_text())) == 2
    assert Attempts(tmp_path / "a.json").current == Attempt(0, 49, 10, 0)


def test_attempts_of_a_run_come_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("forkcast_monitor.attempts.MOST_KEPT", 20)
    assert MOST_KEPT >= 10_000
    attempts = Attempts(tmp_path / "a.json")
    for number in range(20):
        attempts.add(Attempt(0, number, number, 0))
    with pytest.raises(TooManyAttemptsError, match="attempts of this run"):
        attempts.add(Attempt(0, 20, 20, 0))
    attempts.add(Attempt(0, 21, 1, 0))  # takes nearly all of them again
    assert len(json.loads((tmp_path / "a.json").read_text())) == 2
