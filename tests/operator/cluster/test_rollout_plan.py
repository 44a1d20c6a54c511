"""Which rollout Jobs shall be, in a table of situations."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from forkcast.seen import RolloutSeen
from forkcast_operator.kubernetes.rollouts import GiveUp, Start, Stop, park_seconds, plan
from forkcast_operator.kubernetes.seen import JobSeen, Work


def wish(until, *measured):
    return RolloutSeen(until=until, trials=MappingProxyType(dict.fromkeys(measured)))


def job(candidate, rung, work, reason="", *, short=False, pressed=False):
    return JobSeen(
        short=short,
        pressed=pressed,
        name=f"{candidate}-r{rung}",
        branch="b",
        candidate=candidate,
        rung=rung,
        work=work,
        reason=reason,
    )


A, F, S, G, Q = Work.ACTIVE, Work.FAILED, Work.SUCCEEDED, Work.GOING, Work.QUEUED
CASES = {
    "others of the cluster wait for room: what is measured goes, what runs does not": (
        {"control": wish(10), "c000": wish(10, 10)},
        [job("control", 10, A, pressed=True), job("c000", 10, A, pressed=True)],
        2,
        [Stop("c000-r10")],
    ),
    "the control first, at most the limit": (
        {"c001": wish(10), "control": wish(10), "c000": wish(10)},
        [],
        2,
        [Start("control", 10), Start("c000", 10)],
    ),
    "what runs is left alone": ({"c000": wish(10)}, [job("c000", 10, A)], 2, []),
    "a pod that waits goes on to the next rung": (
        {"c000": wish(25, 10)},
        [job("c000", 10, A)],
        2,
        [],
    ),
    "one that has left comes again for it": (
        {"c000": wish(25, 10)},
        [job("c000", 10, S)],
        2,
        [Start("c000", 25)],
    ),
    "measured: nothing to do": ({"c000": wish(10, 10)}, [job("c000", 10, S)], 2, []),
    "a free place is given to who waits": (
        {"control": wish(10, 10), "c000": wish(10), "c001": wish(10)},
        [job("control", 10, S), job("c000", 10, A)],
        2,
        [Start("c001", 10)],
    ),
    "no longer wanted": ({"c000": wish(None, 10)}, [job("c000", 10, A)], 2, [Stop("c000-r10")]),
    "not of this branch any more": ({}, [job("c000", 10, A)], 2, [Stop("c000-r10")]),
    "on its way out: wait": ({"c000": wish(10)}, [job("c000", 10, G)], 2, []),
    "failed: the candidate fails": (
        {"c000": wish(10)},
        [job("c000", 10, F, "BackoffLimitExceeded")],
        2,
        [GiveUp("c000", 10, "BackoffLimitExceeded")],
    ),
    "parked, and the control finds no room: it leaves": (
        {"control": wish(10), "c000": wish(10, 10), "c001": wish(10)},
        [job("control", 10, A, short=True), job("c000", 10, A), job("c001", 10, A)],
        3,
        [Stop("c000-r10")],
    ),
    "parked, and another one's queue has no room: it leaves": (
        {"control": wish(10, 10), "c000": wish(10, 10), "c001": wish(10)},
        [job("control", 10, S), job("c000", 10, A), job("c001", 10, Q, short=True)],
        3,
        [Stop("c000-r10")],
    ),
    "parked, and all find room: it stays": (
        {"control": wish(10), "c000": wish(10, 10)},
        [job("control", 10, A), job("c000", 10, A)],
        2,
        [],
    ),
    "on its way out for another's sake: wait": (
        {"control": wish(10), "c000": wish(10, 10)},
        [job("control", 10, A, short=True), job("c000", 10, G)],
        2,
        [],
    ),
    "it runs, and has a right to its place": (
        {"control": wish(10), "c000": wish(25, 10)},
        [job("control", 10, A, short=True), job("c000", 10, A)],
        2,
        [],
    ),
    "it left for another's sake and comes again for the next rung": (
        {"control": wish(25, 10), "c000": wish(25, 10)},
        [job("control", 10, A)],
        2,
        [Start("c000", 25)],
    ),
    "nobody is held up by one that waits itself": (
        {"c000": wish(10, 10), "c001": wish(10, 10)},
        [job("c000", 10, A, short=True), job("c001", 10, A)],
        2,
        [],
    ),
    "left without a measurement: again": (
        {"c000": wish(10)},
        [job("c000", 10, S)],
        2,
        [Stop("c000-r10")],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plan(case) -> None:
    rollouts, jobs, limit, expected = case
    assert plan(rollouts, jobs, limit) == expected


def test_a_job_that_others_wait_for_does_not_wait() -> None:
    assert park_seconds(7, 2) == 0
    assert park_seconds(7, 7) > 0
