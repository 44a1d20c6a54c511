"""Directives that wait for a trainer."""

import math

import pytest

from forkcast_monitor.directives import Waiting, check
from forkcast_wire import forkcast_pb2 as pb


def hold(seconds, branch="b"):
    return pb.Directive(
        id=f"hold/{branch}", run_uid="a", hold=pb.Hold(branch=branch, deadline_seconds=seconds)
    )


def test_a_hold_is_told_with_what_is_left_of_it_and_ends_by_itself():
    now = [100.0]
    waiting = Waiting(clock=lambda: now[0])
    assert waiting.leave(hold(30.0))
    now[0] = 110.0
    assert [one.hold.deadline_seconds for one in waiting.pending()] == [20.0]
    now[0] = 130.0
    assert waiting.pending() == []


def test_holds_that_have_ended_take_no_room():
    now = [0.0]
    waiting = Waiting(clock=lambda: now[0])
    for n in range(64):
        assert waiting.leave(hold(1.0, f"b{n}"))
    assert not waiting.leave(hold(1.0, "one too many"))
    now[0] = 2.0
    assert waiting.leave(hold(1.0, "later"))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 1e18, 604_801.0])
def test_a_hold_that_would_not_end_is_refused_by_name(seconds):
    with pytest.raises(ValueError, match=r"hold\.deadline_seconds"):
        check(hold(seconds))


@pytest.mark.parametrize("epoch", [0, 10_001, 2**32 - 1])
def test_a_collapse_into_an_impossible_epoch_is_refused_by_name(epoch):
    with pytest.raises(ValueError, match=r"collapse\.epoch"):
        check(pb.Directive(id="c", run_uid="a", collapse=pb.Collapse(branch="b", epoch=epoch)))
