"""The last events of a run: each once, at the row that numbers it, over attempts, replays and restarts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from dataclasses import replace

import grpc
import pytest

from forkcast.records import Event, Index, Tier, TriggerRule
from forkcast_monitor.detector import Detector, Reading
from forkcast_monitor.found import KEPT, Found, LastEvents, event_in, restored
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import event_from_wire, stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.run_events import event_of
from tests.make import trigger

from .conftest import RULES, Talker, registration, statistics
from .in_loop import served

SPIKES = (60, 140, 220)
STEPS = 300


def spiked(uid="a", spikes=SPIKES, **more):
    """The records of a run with a jump at each of these steps."""
    made = [statistics(uid, STEPS, spike=one) for one in spikes]
    among = {step: n for n, one in enumerate(spikes) for step in range(one, one + 30)}
    return [replace(made[among.get(step, 0)][step], **more) for step in range(STEPS)]


def config():
    given = Registration(
        run_uid="a", name="x", namespace="y", uncertainty=RULES, mode="Enforce", total_steps=0
    )
    return given.config()


def opened(folder):
    return WatchedRun(config(), "a", folder / "monitor", History(folder / "statistics"))


def folded(rows):
    """What a detector finds in these rows."""
    detector = Detector(config(), "a")
    readings = [detector.fold(one) for one in rows]
    return [one.event for one in readings if one.event is not None]


def event(step, epoch=0):
    return Event(
        run_uid="a",
        epoch=epoch,
        step=step,
        onset_step=step,
        tier=Tier.EVENT,
        component="volatility",
        cause=f"of step {step}",
    )


def places(events):
    return [one.place for one in events]


def test_events_are_numbered_by_their_rows_also_from_an_earlier_step_on():
    last = LastEvents()
    last.add([Found(0, event(5)), Found(0, event(9))])
    last.add([Found(1, event(5))])  # the trainer went on from step 4
    last.add([Found(0, event(5)), Found(0, event(9))])  # a replay of what came before
    last.add([Found(2, event(1, epoch=1))])  # a collapse to step 0
    assert places(last.since((0, 0, 0))[0]) == [(0, 0, 5), (0, 0, 9), (0, 1, 5), (1, 2, 1)]
    assert places(last.since((0, 0, 6))[0]) == [(0, 0, 9), (0, 1, 5), (1, 2, 1)]
    assert places(last.since((0, 1, 0))[0]) == [(0, 1, 5), (1, 2, 1)]
    assert last.since((1, 2, 2)) == ([], False)


def test_what_is_kept_is_bounded_and_whoever_comes_too_late_is_told():
    last = LastEvents()
    last.add(Found(0, event(step)) for step in range(KEPT))
    assert last.since((0, 0, 1)) == ([Found(0, event(s)) for s in range(1, KEPT)], False)
    last.add([Found(0, event(KEPT))])
    kept, cut = last.since((0, 0, 0))
    assert (len(kept), kept[0].event.step, cut) == (KEPT, 1, True)
    again = LastEvents()
    again.add(restored("a", json.loads(json.dumps(last.state()))))
    assert again.since((0, 0, 0)) == (kept, True)


def test_a_forced_trigger_is_told_as_an_event_and_a_calm_stretch_is_none():
    index = Index(step=7, epoch=0, components={}, index=0.0, z=0.0, ready=True)
    forced, calm = (trigger(step=7, rule=one) for one in (TriggerRule.FORCED, TriggerRule.CALM))
    told = event_in(Reading(index, None, forced))
    assert (told.step, told.tier, told.cause) == (7, Tier.BRANCH, event_of(forced).cause)
    assert event_in(Reading(index, None, calm)) is None
    assert event_in(Reading(index, event(7), forced)) == event(7)


def test_several_events_of_one_batch_are_all_there_with_those_of_its_triggers(tmp_path):
    rows = spiked()
    run = opened(tmp_path)
    run.hello(0, 0, 0, STEPS)
    run.accept_all([stats_to_wire(one) for one in rows])
    found = [one.event for one in run.found.since((0, 0, 0))[0]]
    assert len(found) >= 2
    assert found == folded(rows)
    assert {one.step for one in run.triggers} <= {one.step for one in found}


def test_an_event_of_a_row_that_is_not_on_record_is_told_when_the_row_is(tmp_path, monkeypatch):
    rows = spiked()
    run = opened(tmp_path)
    run.hello(0, 0, 0, STEPS)
    batch = [stats_to_wire(one) for one in rows]

    def full(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run.history.file, "append", full)
        with pytest.raises(OSError, match="no space"):
            run.accept_all(batch)
        assert run.found.since((0, 0, 0)) == ([], False)
    run.accept_all(batch)
    assert [one.event for one in run.found.since((0, 0, 0))[0]] == folded(rows)


def test_an_attempt_that_takes_its_steps_again_has_events_of_its_own(tmp_path):
    first, again = spiked(), spiked(attempt=1, spikes=(140, 210))
    run = opened(tmp_path)
    run.hello(0, 0, 0, STEPS)
    run.accept_all([stats_to_wire(one) for one in first])
    run.hello(0, 100, 0, STEPS, attempt=1)
    run.accept_all([stats_to_wire(one) for one in again[100:]])
    found = [one.event for one in run.found.since((0, 1, 0))[0]]
    assert found
    assert found == [one for one in folded(first[:100] + again[100:]) if one.step >= 100]
    everything = places(run.found.since((0, 0, 0))[0])
    assert everything == sorted(set(everything))
    assert [one.event for one in run.found.since((0, 0, 0))[0]] == folded(first) + found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda one: one.name)
def test_a_restart_finds_the_same_events_at_the_same_rows(start_monitor, connect, number):
    rows = spiked()
    monitor = start_monitor()

    async def listed(until, **since):
        async with connect() as (channel, stub):
            await stub.RegisterRun(registration("a"), wait_for_ready=True)
            await Talker(channel, "a", rows).talk(until)
            request = pb.ListEventsRequest(run_uid="a", **since)
            return await stub.ListEvents(request)

    before = asyncio.run(listed(200))
    assert before.events
    monitor.stop(number)
    monitor.start()
    assert asyncio.run(listed(200)) == before
    after = asyncio.run(listed(STEPS))
    assert [event_from_wire(one) for one in after.events] == [(one, 0) for one in folded(rows)]
    assert len(after.events) > len(before.events)
    new = asyncio.run(listed(STEPS, step=before.events[-1].step + 1))
    assert list(new.events) == list(after.events)[len(before.events) :]
    assert not new.cut


def test_a_snapshot_of_an_earlier_version_is_taken_and_has_no_events(tmp_path):
    rows = spiked()
    run = opened(tmp_path)
    run.hello(0, 0, 0, STEPS)
    run.accept_all([stats_to_wire(one) for one in rows])
    run.close()
    for path in (tmp_path / "monitor" / "snapshots").glob("*.json"):
        document = json.loads(path.read_bytes().partition(b"\n")[2])
        assert document.pop("found")
        body = json.dumps(document).encode()
        path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    again = opened(tmp_path)
    assert again.found.since((0, 0, 0)) == ([], False)
    assert again.detector.state() == run.detector.state()


def test_a_run_that_is_not_known_has_none_and_a_busy_one_does_not_wait(tmp_path):
    async def play():
        async with served(tmp_path) as (runs, connect):
            channel = connect()
            stub = MonitorStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListEvents(pb.ListEventsRequest(run_uid="b"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            await stub.RegisterRun(registration("a"))
            await Talker(channel, "a", spiked()).talk()
            async with runs.find("a").lock:
                answer = await stub.ListEvents(pb.ListEventsRequest(run_uid="a"))
            assert answer.events
            assert answer.triggers == len(runs.find("a").opened.triggers)

    asyncio.run(play())
