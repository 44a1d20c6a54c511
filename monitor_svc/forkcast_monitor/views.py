"""A run as its readers see it."""

from __future__ import annotations

from forkcast_monitor.run import WatchedRun
from forkcast_monitor.runs import Hosted, seconds_since
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import window_to_wire


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


def summary_of_busy(hosted: Hosted, stood: pb.RunSummary) -> pb.RunSummary:
    """Where a run stood after its last batch, while another one, or a history, is folded."""
    told = pb.RunSummary()
    told.CopyFrom(stood)
    told.streams = len(hosted.streams)
    if (seconds := seconds_since(hosted)) is not None:
        told.seconds_since_report = seconds
    return told


def summary(hosted: Hosted, run: WatchedRun) -> pb.RunSummary:
    """Where a run stands."""
    given, last, index = hosted.registration, run.last(), run.detector.last
    event = run.detector.last_event
    told = pb.RunSummary(
        run_uid=given.run_uid,
        name=given.name,
        namespace=given.namespace,
        mode=given.mode,
        epoch=run.epoch,
        attempt=run.attempt,
        next_step=run.next_step,
        total_steps=run.total_steps or given.total_steps,
        tokens=last.tokens if last else 0,
        loss=last.loss if last else None,
        grad_norm=last.grad_norm if last else None,
        index=index.index if index else None,
        z=index.z if index else None,
        triggers=len(run.triggers),
        last_trigger_step=run.triggers[-1].step if run.triggers else None,
        events=run.detector.events,
        last_event_step=event.step if event else None,
        last_event=event.cause if event else "",
        streams=len(hosted.streams),
        seconds_since_report=seconds_since(hosted),
    )
    if index is not None and index.ready:
        told.over_threshold = run.detector.over_threshold
    return told
