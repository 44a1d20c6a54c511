"""A directive, as an operator posts it for a trainer."""

from google.protobuf.message import DecodeError

from forkcast.directives import Hold
from forkcast_monitor.directives import Waiting, deliverable
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import directive_from_wire, directive_to_wire

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
    message = pb.PostDirectiveRequest.FromString(data).directive
    directive = directive_from_wire(message)
    assert directive_from_wire(directive_to_wire("a", directive)) == directive
    if not deliverable(directive, "Enforce"):
        return
    now = [0.0]
    waiting = Waiting(clock=lambda: now[0])
    assert waiting.leave(directive)
    assert waiting.leave(directive)
    assert waiting.pending() == [directive]
    if isinstance(directive, Hold):
        now[0] = 604_801.0
        assert not waiting.pending()
