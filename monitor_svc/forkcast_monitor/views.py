"""A run as its readers see it."""

from __future__ import annotations

from forkcast_monitor.run import WatchedRun
from forkcast_monitor.runs import Hosted, seconds_since
from forkcast_monitor.standing import Standing
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import event_to_wire, window_to_wire


def window_reply(run: WatchedRun, steps: int) -> pb.WindowReply:
    """The last ``steps`` accepted steps (0 = the detector's window) and the index at the last."""
    with run.lock:
        window, last = run.window(steps), run.detector.last
        return pb.WindowReply(
            window=window_to_wire(window),
            index=last.index if last else 0.0,
            z=last.z if last else 0.0,
            ready=bool(last and last.ready),
            components=dict(last.components) if last else {},
            over_threshold=run.detector.over_threshold,
        )


def events_reply(run: WatchedRun, place: tuple[int, int, int]) -> pb.ListEventsResponse:
    """The last events, from the row at a place on. It waits for no run that is busy."""
    triggers = len(run.triggers)  # before the events: then those of all of them are there
    events, cut = run.found.since(place)
    return pb.ListEventsResponse(
        events=[event_to_wire(one.event, one.attempt) for one in events],
        cut=cut,
        triggers=triggers,
    )


def summary(hosted: Hosted, stood: Standing) -> pb.RunSummary:
    """A run as it stood, and its streams as they are."""
    given, last, index = hosted.registration, stood.last, stood.judged
    event = stood.last_event
    told = pb.RunSummary(
        run_uid=given.run_uid,
        name=given.name,
        namespace=given.namespace,
        mode=given.mode,
        epoch=stood.epoch,
        attempt=stood.attempt,
        next_step=stood.next_step,
        total_steps=stood.total_steps or given.total_steps,
        tokens=last.tokens if last else 0,
        loss=last.loss if last else None,
        grad_norm=last.grad_norm if last else None,
        index=index.index if index else None,
        z=index.z if index else None,
        triggers=stood.triggers,
        last_trigger_step=stood.last_trigger_step,
        events=stood.events,
        last_event_step=event.step if event else None,
        last_event=event.cause if event else "",
        last_event_onset_step=event.onset_step if event else None,
        streams=len(hosted.streams),
        seconds_since_report=seconds_since(hosted),
    )
    if stood.over_threshold is not None:
        told.over_threshold = stood.over_threshold
    return told
