"""Strangers in any number: known callers are answered while they stand, and a stranger costs little.

What is counted is calls and reviews, never time.
"""

import asyncio
import base64
import socket
import threading
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.access import Caller, RefusedError
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.guard import Places, Room
from forkcast_wire.reviews import CrowdedError, ReviewLimits, Reviews
from forkcast_wire.token_review import Reviewed, plausible
from tests.certificates import Authority
from tests.ports import free_port
from tests.waiting import HANG_SECONDS

from .conftest import Process, answer, registration, statistics
from .in_loop import hello, refusal, served
from .test_access import Secured, TokenReviews, register, token_of


@pytest.fixture
def guarded(tmp_path):
    """A monitor behind tokens, and the reviews it asks."""
    authority = Authority()
    reviews = TokenReviews(authority.issue(tmp_path / "tls"))
    for name, user in (
        ("operators", "forkcast-system:forkcast-operator"),
        ("teams", "team:trainer"),
    ):
        reviews.tokens[name] = (f"system:serviceaccount:{user}", "forkcast-monitor")
    (tmp_path / "own").write_text("the-monitors-own\n")
    (tmp_path / "api.crt").write_bytes(authority.pem)
    arguments = ["--review-url", reviews.url, "--review-ca", "api.crt", "--review-token", "own"]
    one = Secured(tmp_path, Authority(), arguments)
    asyncio.run(register(one, "operators"))
    yield one, reviews
    reviews.gate.set()
    one.process.kill()
    reviews.shutdown()
    reviews.server_close()


def test_a_known_caller_is_answered_while_a_flood_of_invented_tokens_stands(guarded):
    monitor, reviews = guarded
    connections, calls = 5, 400

    async def play():
        async with monitor.channel("teams") as channel:
            stub = MonitorStub(channel)
            stream = await hello(stub, "a")
            reviews.gate.clear()  # from here on no review ends
            asked_before = reviews.asked.total()
            strangers = [monitor.channel(None) for _ in range(connections)]
            flood = [
                asyncio.ensure_future(
                    code_of(
                        MonitorStub(stranger).ListRuns(
                            pb.ListRunsRequest(),
                            metadata=(("authorization", f"Bearer {token_of(f'x{at}-{n}')}"),),
                        )
                    )
                )
                for at, stranger in enumerate(strangers)
                for n in range(calls)
            ]
            async with asyncio.timeout(HANG_SECONDS):
                for one in statistics("a", 20):
                    batch = pb.StatsBatch(seq=one.step + 1, stats=[stats_to_wire(one)])
                    await stream.write(batch)
                    assert (await answer(stream)).seq == one.step + 1
                    assert len((await stub.ListRuns(pb.ListRunsRequest())).runs) == 1
                # nearly all are refused while none is reviewed
                ended = asyncio.as_completed(flood)
                refused = Counter([await next(ended) for _ in range(connections * calls - 40)])
            assert set(refused) == {"UNAVAILABLE"}, refused
            assert reviews.asked.total() - asked_before <= ReviewLimits().at_once
            for one in flood:
                one.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
            for stranger in strangers:
                await stranger.close()
            reviews.gate.set()
        reviews.tokens["later"] = reviews.tokens["teams"]
        async with monitor.channel("later") as channel, asyncio.timeout(HANG_SECONDS):
            # a newcomer, from the flood's own address
            while (
                code := await code_of(MonitorStub(channel).ListRuns(pb.ListRunsRequest()))
            ) != "OK":
                assert code == "UNAVAILABLE"
        # of the reviews that waited when their callers left none was made
        assert reviews.asked.total() - asked_before <= 2 * ReviewLimits().at_once

    asyncio.run(play())
    assert monitor.refusals()["crowded"] >= connections * calls - 40


async def code_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize(
    "token",
    ["", "a", "a.b", "a.b.c", "..", token_of("x", "another-audience"), token_of("x", expires=1e9)],
)
def test_what_cannot_be_a_token_for_this_service_is_never_reviewed(guarded, token):
    monitor, reviews = guarded
    before = reviews.asked.total()

    async def play():
        async with monitor.channel(None) as channel:
            call = MonitorStub(channel).ListRuns(
                pb.ListRunsRequest(), metadata=(("authorization", f"Bearer {token}"),)
            )
            assert await code_of(call) == "UNAUTHENTICATED"

    asyncio.run(play())
    assert reviews.asked.total() == before


@pytest.mark.parametrize(
    "claims", ["[]", "3", '{"aud": 3, "exp": 1}', '{"aud": ["a"]}', "[" * 9000]
)
def test_any_claims_at_all_are_looked_at_without_a_failure(claims):
    body = base64.urlsafe_b64encode(claims.encode()).decode()
    assert not plausible(f"h.{body}.s", "a", 0.0)


class Slow:
    """A reviewer whose reviews end when they are let."""

    def __init__(self):
        self.asked, self.begun, self.gate = [], threading.Semaphore(0), threading.Event()

    def __call__(self, token):
        self.asked.append(token)
        self.begun.release()
        self.gate.wait(HANG_SECONDS)
        return Reviewed(authenticated=True, namespace="n", account="a")


def waiting(reviews, peer, count, *, known=False):
    return [
        asyncio.ensure_future(reviews.ask(f"{peer}{n}".encode(), f"{peer}{n}", peer, known=known))
        for n in range(count)
    ]


async def begun(slow, count):
    for _ in range(count):
        await asyncio.to_thread(slow.begun.acquire)


def test_peers_take_turns_and_tokens_that_were_good_go_first():
    async def play():
        slow = Slow()
        limits = ReviewLimits(at_once=2, kept=1, waiting=10, per_peer=4)
        reviews = Reviews(slow, lambda *_: None, limits)
        crowd = waiting(reviews, "loud", 5)
        await begun(slow, 1)  # one of strangers runs; the other place is kept
        quiet, old = waiting(reviews, "quiet", 1), waiting(reviews, "old", 3, known=True)
        await begun(slow, 1)
        assert slow.asked == ["loud0", "old0"]
        slow.gate.set()
        await asyncio.gather(*crowd, *quiet, *old)
        order = slow.asked
        assert max(order.index(f"old{n}") for n in range(3)) < order.index("loud2")
        assert order.index("quiet0") < order.index("loud2")

    asyncio.run(play())


def test_whoever_has_most_waiting_makes_room_for_another_peer():
    async def play():
        slow = Slow()
        limits = ReviewLimits(at_once=2, kept=1, waiting=6, per_peer=5)
        reviews = Reviews(slow, lambda *_: None, limits)
        first = waiting(reviews, "first", 1)
        await begun(slow, 1)
        loud = waiting(reviews, "loud", 9)
        await asyncio.sleep(0)
        assert [isinstance(one.exception(), CrowdedError) for one in loud if one.done()] == [
            True
        ] * 4
        others = [*waiting(reviews, "b", 1), *waiting(reviews, "c", 1), *waiting(reviews, "d", 1)]
        await asyncio.sleep(0)
        assert reviews.waiting == 6
        slow.gate.set()
        assert len(await asyncio.gather(*first, *others)) == 4
        refused = [
            one
            for one in await asyncio.gather(*loud, return_exceptions=True)
            if isinstance(one, CrowdedError)
        ]
        assert len(refused) == 6

    asyncio.run(play())


def test_a_review_that_nobody_waits_for_any_longer_is_not_made():
    async def play():
        slow = Slow()
        reviews = Reviews(slow, lambda *_: None, ReviewLimits(at_once=2, kept=1))
        (first,) = waiting(reviews, "first", 1)
        await begun(slow, 1)
        gone, (both, other) = waiting(reviews, "gone", 5), waiting(reviews, "stays", 1) * 2
        joined = asyncio.ensure_future(reviews.ask(b"stays0", "stays0", "x", known=False))
        await asyncio.sleep(0)
        for one in (*gone, both):
            one.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        slow.gate.set()
        assert (await joined).authenticated
        assert (await first).authenticated
        assert slow.asked == ["first0", "stays0"]
        assert other is both

    asyncio.run(play())


def test_a_caller_may_not_take_all_places_and_an_operator_always_has_one():
    async def play():
        room = Room(Places(per_caller=2, in_all=3))
        team, other, third = Caller("team", "t"), Caller("other", "t"), Caller("third", "t")

        async def enter(who):
            place = room.place(who, "", stream=True)
            await place.__aenter__()
            return place

        held = [await enter(team), await enter(team)]
        with pytest.raises(RefusedError, match="too many calls"):
            await enter(team)
        held.append(await enter(other))
        with pytest.raises(RefusedError, match="too many calls"):
            await enter(third)
        held.append(await enter(Caller("system", "operator", operator=True)))
        await held[0].__aexit__(None, None, None)
        await enter(third)

    asyncio.run(play())


def test_requests_in_service_are_few_and_those_that_wait_are_bounded():
    async def play():
        room, inside, release = Room(Places(at_once=2, waiting=3)), [], asyncio.Event()

        async def call(n):
            async with room.place(None, "", stream=False):
                inside.append(n)
                await release.wait()

        calls = [asyncio.ensure_future(call(n)) for n in range(6)]
        with pytest.raises(RefusedError, match="too many requests wait"):
            await calls[5]
        assert inside == [0, 1]
        calls[2].cancel()  # its caller has left: its place is free
        release.set()
        await asyncio.gather(*calls[:2], *calls[3:5])
        assert inside == [0, 1, 3, 4]

    asyncio.run(play())


def test_bytes_that_are_no_message_are_refused_without_a_traceback(tmp_path, capfd, caplog):
    async def play():
        async with served(tmp_path) as (_, connect):
            channel = connect()
            raw = {"request_serializer": None, "response_deserializer": None}
            for name in ("ListRuns", "GetWindow", "RegisterRun"):
                call = channel.unary_unary(f"/forkcast.v1.Monitor/{name}", **raw)(b"\xff\xff")
                assert await code_of(call) == "INVALID_ARGUMENT"
            watch = channel.unary_stream("/forkcast.v1.Monitor/WatchTriggers", **raw)(b"\xff")
            assert await code_of(watch.read()) == "INVALID_ARGUMENT"
            talk = channel.stream_stream("/forkcast.v1.Monitor/Report", **raw)()
            await talk.write(b"\xff\xff")
            assert await refusal(talk) == "INVALID_ARGUMENT"
            await MonitorStub(channel).RegisterRun(registration("a"))
            talk = channel.stream_stream("/forkcast.v1.Monitor/Report", **raw)()
            await talk.write(pb.StatsBatch(hello=pb.Hello(run_uid="a")).SerializeToString())
            assert await talk.read()
            await talk.write(b"\xff\xff")
            assert await refusal(talk) == "INVALID_ARGUMENT"

    asyncio.run(play())
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err + caplog.text


# -------------------------------------------------------------------------------------- health checks


def test_health_checks_of_strangers_take_no_place_of_known_callers(guarded):
    """Regression: they passed unasked, and 8,192 open watches shut the service for everybody."""
    monitor, _ = guarded

    async def play():
        async with monitor.channel(None) as stranger, monitor.channel("teams") as channel:
            health = health_pb2_grpc.HealthStub(stranger)
            for _ in range(3):
                watch = health.Watch(health_pb2.HealthCheckRequest(service="anything"))
                assert await refusal(watch) == "UNAUTHENTICATED"
                check = health.Check(health_pb2.HealthCheckRequest())
                assert await code_of(check) == "UNAUTHENTICATED"
            known = health_pb2_grpc.HealthStub(channel)
            assert (await known.Check(health_pb2.HealthCheckRequest())).status == 1

    asyncio.run(play())


def _as_bytes(channel):
    return channel.stream_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda data: data,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


def test_the_health_port_answers_a_probe_while_another_address_holds_calls_open(tmp_path):
    """What never sends its request, watches, or sends what is no message holds few places."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here, so no second address")
    port = free_port()
    listen = f"unix:{tmp_path}/m.sock"
    arguments = ("--state", "state", "--listen", listen, "--health-port", str(port))
    process = Process(tmp_path, *arguments).start()

    async def play():
        async with (
            open_channel(f"127.0.0.1:{port}", aio=True, insecure_dev=True) as flooding,
            open_channel(f"[::1]:{port}", aio=True, insecure_dev=True) as kubelet,
        ):
            asked, probe = health_pb2.HealthCheckRequest(), health_pb2_grpc.HealthStub(kubelet)
            await probe.Check(asked, wait_for_ready=True, timeout=HANG_SECONDS)
            held = [_as_bytes(flooding)() for _ in range(500)]
            for one in held:
                await one.wait_for_connection()
            watches = [health_pb2_grpc.HealthStub(flooding).Watch(asked) for _ in range(500)]
            calls = [*held, *watches]
            ended = asyncio.as_completed([one.code() for one in calls])
            codes = {(await next(ended)).name for _ in range(len(calls) - 16)}
            assert codes <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
            assert (await probe.Check(asked)).status == 1
            for one in calls:
                one.cancel()
            assert await code_of(_as_bytes(kubelet)(iter([b"\xff" * 9]))) == "INVALID_ARGUMENT"

    asyncio.run(play())
    process.stop()
    assert "Traceback" not in process.logged()
