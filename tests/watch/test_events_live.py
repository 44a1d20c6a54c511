"""Every event that a real monitor finds reaches a live watcher: once, whole and in order."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread

import grpc
import grpc.aio
import pytest
import torch

import forkcast
from forkcast.records import Event, Tier
from forkcast_monitor.detector import Detector
from forkcast_monitor.runs import Runs
from forkcast_monitor.server import Monitor
from forkcast_watch.events import EventWatch
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import event_to_wire, trigger_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer
from forkcast_wire.statistics import read_history, row_to_stats
from tests.make import trigger
from tests.monitor.in_loop import listening
from tests.waiting import HANG_SECONDS, until
from tests.watch.test_session import adam
from tests.watch.toys import Toy

RULES = {"window": 32, "warmupSteps": 40}


def figures(step, spikes):
    """Loss and gradient norm of a step: calm, with a little noise that is the same each time, or in a spike
    of three rows, which is an event that asks for no branch.
    """
    noise = math.sin(1.7 * step) + math.sin(0.61 * step * step)
    high = any(begin <= step < begin + 3 for begin in spikes)
    return 3.0 + 0.05 * noise + 0.5 * high, math.exp(0.1 * noise) * (3.0 if high else 1.0)


def steps(watch, first, last, spikes):
    for step in range(first, last):
        loss, norm = figures(step, spikes)
        watch.step(loss, grad_norm=norm)


def lineage(rows):
    """The rows of a history that no later attempt has taken again."""
    begins = {}
    for row in rows:
        begins[row["attempt"]] = min(row["step"], begins.get(row["attempt"], math.inf))
    return [
        row
        for row in rows
        if all(row["step"] < step for one, step in begins.items() if one > row["attempt"])
    ]


def found(watch, folder=None):
    """What a detector makes of a run's history: each event of it, in order."""
    config = watch._folder.registration.config()
    detector = Detector(config, watch._folder.run_uid)
    rows = lineage(read_history(folder or watch.folder / "statistics"))
    readings = [detector.fold(row_to_stats(row)) for row in rows]
    return [one.event for one in readings if one.event is not None]


def settled(watch, first, last, folder=None):
    """Wait until the monitor has the steps and the watch its events; these. The newest step is handed on
    with the next.
    """

    def judged():
        rows = read_history(folder or watch.folder / "statistics")
        of_this = [row["step"] for row in rows if row["attempt"] == watch._folder.attempt]
        return bool(of_this) and max(of_this) >= last - 2

    until(judged, "the last step but one", every=0.2)
    expected = [one for one in found(watch, folder) if one.step >= first]
    until(lambda: len(watch.events) >= len(expected), "every event")
    return expected


@pytest.fixture
def watched(tmp_path):
    model = Toy()

    def watch(**more):
        given = {"folder": tmp_path / "run", "uncertainty": RULES, **more}
        return forkcast.watch(model, adam(model), **given)

    torch.manual_seed(0)
    return watch


def test_two_events_within_a_second_are_both_told_whole_and_in_order(watched, tmp_path, caplog):
    """Regression: only the last one of a poll was, without its component and as of tier Event."""
    lines = tmp_path / "told.jsonl"
    with watched(trackers=[f"jsonl:{lines}"]) as watch:
        steps(watch, 0, 450, spikes={300, 360, 420})
        expected = settled(watch, 0, 450)
    assert len(expected) >= 2
    assert watch.events == expected
    logged = [one.getMessage() for one in caplog.records if "unstable" in one.getMessage()]
    assert logged == [f"unstable at step {one.step}: {one.cause}" for one in expected]
    written = [
        one["event"]
        for line in lines.read_text().splitlines()
        if "event" in (one := json.loads(line))
    ]
    assert [(one["step"], one["component"], one["tier"]) for one in written] == [
        (one.step, one.component, one.tier) for one in expected
    ]


def test_a_training_that_goes_on_from_an_earlier_step_tells_its_own_events_alone(watched):
    """Those of the attempt before stand at later steps, and at the same; none of them is news."""
    with watched() as watch:
        steps(watch, 0, 450, spikes={300, 360, 420})
        first = settled(watch, 0, 450)
    with watched(start_step=350) as watch:
        steps(watch, 350, 440, spikes={360, 400})
        again = settled(watch, 350, 440)
    assert again
    assert watch.events == again
    assert again[0].step < first[-1].step
    with watched(start_step=350) as watch:
        steps(watch, 350, 355, spikes=())
        assert settled(watch, 350, 355) == []
    assert watch.events == []


def test_a_monitor_that_is_killed_in_between_tells_nothing_twice_and_loses_nothing(watched):
    with watched() as watch:
        steps(watch, 0, 320, spikes={300})
        until(lambda: watch.events, "the first event")
        monitor = watch._sink.process
        killed = monitor.process.pid
        os.kill(killed, signal.SIGKILL)
        steps(watch, 320, 450, spikes={360, 420})
        until(lambda: monitor.process is not None and monitor.process.pid != killed, "another")
        expected = settled(watch, 0, 450)
    assert watch.events == expected
    assert len(expected) >= 2


@contextmanager
def monitor_at(target, made):
    """A monitor in a loop of its own."""
    ready, over = Flag(), []

    async def serve():
        over.extend((asyncio.get_running_loop(), asyncio.Event()))
        async with listening(made(), target):
            ready.set()
            await over[1].wait()

    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(HANG_SECONDS)
    try:
        yield
    finally:
        over[0].call_soon_threadsafe(over[1].set)
        thread.join()


class Earlier(Monitor):
    """One that has no ListEvents yet."""

    async def ListEvents(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


@pytest.mark.parametrize("made", [Monitor, Earlier])
def test_a_monitor_of_an_earlier_version_tells_what_it_can(watched, tmp_path, made, monkeypatch):
    monkeypatch.setenv("FORKCAST_INSECURE_DEV", "1")
    target = f"unix:{tmp_path}/m.sock"
    with (
        monitor_at(target, lambda: made(Runs(tmp_path / "state"))),
        watched(monitor=target) as watch,
    ):
        history = tmp_path / "state" / "runs" / watch._folder.run_uid / "statistics"
        until(history.is_dir, "the run's history")
        steps(watch, 0, 320, spikes={300})
        assert settled(watch, 0, 320, history)
        steps(watch, 320, 450, spikes={360})
        expected = settled(watch, 0, 450, history)
    assert [(one.step, one.onset_step, one.cause) for one in watch.events] == [
        (one.step, one.onset_step, one.cause) for one in expected
    ]
    assert all(bool(one.component) is (made is Monitor) for one in watch.events)


def told_event(at, **wrong):
    event = Event(
        run_uid="u",
        epoch=0,
        step=at,
        onset_step=at,
        tier=Tier.EVENT,
        component="volatility",
        cause=f"of step {at}",
    )
    message = event_to_wire(event, 1)
    for name, value in wrong.items():
        setattr(message, name, value)
    return message


class Lying(MonitorServicer):
    """Tells sound things among others that no monitor makes, all of it again and again."""

    def __init__(self):
        self.asked = 0

    async def ListEvents(self, request, context):
        self.asked += 1
        wrong = [
            {"tier": 9},
            {"tier": 1},
            {"onset_step": 999},
            {"cause": "x" * 10_000},
            {"cause": ""},
            {"component": "x" * 10_000},
            {"run_uid": "v"},
            {"epoch": 1},
            {"epoch": 2**32 - 1},
            {"attempt": 0},
            {"attempt": 2},
            {"step": 2**64 - 1},
        ]
        events = [told_event(15), told_event(14), *(told_event(17, **one) for one in wrong)]
        events += [told_event(15), told_event(18), told_event(3), told_event(16)]
        return pb.ListEventsResponse(events=events, triggers=2**64 - 1, cut=True)

    async def WatchTriggers(self, request, context):
        """Without an end, and the same each time."""
        bad = pb.Trigger(run_uid="u", rule="Nonsense")
        await context.write(pb.TriggerEvent(seq=1, trigger=bad))
        while True:
            good = trigger_to_wire(trigger(run_uid="u"))
            await context.write(pb.TriggerEvent(seq=2, trigger=good))


def test_of_a_lying_monitor_what_is_sound_is_taken_once_and_in_order(tmp_path):
    told, triggers, lying = [], [], Lying()
    target = f"unix:{tmp_path}/m.sock"
    with monitor_at(target, lambda: lying):
        watch = EventWatch(target, "u", 1, 10, 0, happened=told.append, triggered=triggers.append)
        until(lambda: lying.asked >= 2, "a second question")
        watch.close()
    assert [one.step for one in told] == [15, 18]
    assert [one.run_uid for one in triggers] == ["u"]
