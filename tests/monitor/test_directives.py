"""Directives that wait for a trainer."""

from forkcast.directives import CheckpointNow, Collapse, Hold, Resume
from forkcast_monitor.directives import Waiting


def hold(seconds, branch="b"):
    return Hold(branch=branch, deadline_seconds=seconds)


def test_a_hold_is_told_with_what_is_left_of_it_and_ends_by_itself():
    now = [100.0]
    waiting = Waiting(clock=lambda: now[0])
    assert waiting.leave(hold(30.0))
    now[0] = 110.0
    assert waiting.pending() == [hold(20.0)]
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


def test_a_branch_that_ends_takes_its_own_hold_away_and_no_other():
    for end in (Resume(branch="b"), Collapse(branch="b", epoch=1, decision_digest="d")):
        waiting = Waiting(clock=lambda: 0.0)
        for directive in (hold(9.0), hold(9.0, "other"), CheckpointNow(id="b"), end):
            assert waiting.leave(directive)
        assert waiting.pending() == [hold(9.0, "other"), CheckpointNow(id="b"), end]
        waiting.overtaken(1)
        assert (end in waiting.pending()) is isinstance(end, Resume)
