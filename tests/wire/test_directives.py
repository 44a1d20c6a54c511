"""Directives on the wire: what an operator makes arrives as it was, and nothing else is taken."""

import math

import pytest

from forkcast.directives import CheckpointNow, Collapse, Hold, Resume
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import directive_from_wire, directive_to_wire

DIRECTIVES = {
    "hold/b": Hold(branch="b", deadline_seconds=604_800.0),
    "release/b": Resume(branch="b"),
    "collapse/7": Collapse(branch="b", epoch=7, decision_digest="d" * 64),
    "checkpoint/c8687a08aa5d6ed2": CheckpointNow.asked_by("a b"),
}


@pytest.mark.parametrize("name", DIRECTIVES)
def test_a_directive_arrives_as_it_was_made(name):
    message = directive_to_wire("u", DIRECTIVES[name])
    assert (message.run_uid, message.id) == ("u", name)
    assert (
        directive_from_wire(pb.Directive.FromString(message.SerializeToString()))
        == (DIRECTIVES[name])
    )


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e18, 604_801.0])
def test_a_hold_that_would_not_end_is_refused_by_name(seconds):
    message = pb.Directive(id="h", hold=pb.Hold(branch="b", deadline_seconds=seconds))
    with pytest.raises(ValueError, match=r"hold\.deadline_seconds"):
        directive_from_wire(message)


@pytest.mark.parametrize("epoch", [0, 10_001, 2**32 - 1])
def test_a_collapse_into_an_impossible_epoch_is_refused_by_name(epoch):
    message = pb.Directive(id="c", collapse=pb.Collapse(branch="b", epoch=epoch))
    with pytest.raises(ValueError, match=r"collapse\.epoch"):
        directive_from_wire(message)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("hold.branch", {"hold": pb.Hold(branch="b" * 257, deadline_seconds=1)}),
        ("resume.branch", {"resume": pb.Resume(branch="b" * 257)}),
        ("collapse.branch", {"collapse": pb.Collapse(branch="b" * 257, epoch=1)}),
        ("collapse.decision_digest", {"collapse": {"epoch": 1, "decision_digest": "d" * 257}}),
        ("id: a directive needs one", {"checkpoint_now": {}}),
        ("id: at most", {"id": "i" * 257, "checkpoint_now": {}}),
        ("what", {"id": "x"}),
    ],
)
def test_what_no_operator_makes_is_refused_by_name(said, what):
    with pytest.raises(ValueError, match=f"^{said}"):
        directive_from_wire(pb.Directive(**what))
