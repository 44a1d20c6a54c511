"""A directive, as an operator posts it for a trainer."""

import math

from google.protobuf.message import DecodeError

from forkcast_monitor.directives import Waiting, check, deliverable
from forkcast_wire import forkcast_pb2 as pb

REFUSALS = (DecodeError, ValueError)


def seeds():
    """One of each kind."""
    for what in (
        {"hold": pb.Hold(branch="b", deadline_seconds=30.0)},
        {"resume": pb.Resume(branch="b")},
        {"collapse": pb.Collapse(branch="b", epoch=1, decision_digest="d" * 64)},
        {"checkpoint_now": pb.CheckpointNow()},
    ):
        directive = pb.Directive(id=f"{next(iter(what))}/b", run_uid="a", **what)
        yield pb.PostDirectiveRequest(directive=directive).SerializeToString()


def feed(data):
    """What is taken is told once, and a hold ends."""
    directive = pb.PostDirectiveRequest.FromString(data).directive
    check(directive)
    if not deliverable(directive, "Enforce"):
        return
    now = [0.0]
    waiting = Waiting(clock=lambda: now[0])
    assert waiting.leave(directive)
    assert waiting.leave(directive)
    told = waiting.pending()
    assert [one.id for one in told] == [directive.id] * (
        not directive.HasField("hold") or directive.hold.deadline_seconds > 0
    )
    assert pb.Ack(directives=told).SerializeToString() or not told
    if directive.HasField("hold"):
        assert math.isfinite(directive.hold.deadline_seconds)
        now[0] = 604_801.0
        assert not waiting.pending()
