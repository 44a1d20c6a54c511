"""How a rollout stands: by its pods, not by the wish that it runs."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from forkcast.actions import Action
from forkcast.decision import Candidate, Draft, DraftSource, ProxyAnswer
from forkcast.phases import Verifying
from forkcast.seen import RolloutSeen
from forkcast_operator.kubernetes.branch_status import branch_status
from forkcast_operator.kubernetes.events import branch_events
from forkcast_operator.kubernetes.rollout_state import (
    pressure,
    rollout_jobs,
    rollout_stands,
    rollout_trouble,
)
from forkcast_operator.kubernetes.seen import JobSeen, PodSeen, Work
from forkcast_wire.branches import StoredBranch
from forkcast_wire.resources import BranchStatus, RolloutState

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
JOB = JobSeen(
    name="b-control-r10",
    branch="b",
    candidate="control",
    rung=10,
    work=Work.ACTIVE,
    created=NOW - dt.timedelta(seconds=31),
)
POD = PodSeen(name="p", created=NOW, mounting=False, ready=True, scheduled=True)
WISHED = RolloutSeen(until=10, trials={})
WAITS = replace(POD, ready=False, waiting="Unschedulable", message="0/3 nodes are available")
FRESH = replace(JOB, created=NOW - dt.timedelta(seconds=3))


@pytest.mark.parametrize(
    ("job", "pods", "state", "reason"),
    [
        (JOB, [POD], RolloutState.RUNNING, ""),
        (JOB, [replace(POD, ready=False)], RolloutState.PENDING, ""),
        (JOB, [WAITS], RolloutState.PENDING, "Unschedulable"),
        (JOB, [], RolloutState.PENDING, "NoPods"),
        (FRESH, [], RolloutState.PENDING, ""),
        (replace(JOB, work=Work.QUEUED, queue="q"), [], RolloutState.PENDING, "NotAdmitted"),
        (None, [], RolloutState.PENDING, ""),
    ],
)
def test_a_rollout_runs_while_its_pod_does_and_otherwise_says_why_not(
    job, pods, state, reason
) -> None:
    stands = rollout_stands(WISHED, job, pods, NOW)
    assert (stands.state, stands.reason) == (state, reason)
    assert bool(stands.message) is (state is RolloutState.PENDING)


def test_rollouts_with_the_same_trouble_are_named_together() -> None:
    held = rollout_stands(WISHED, JOB, [], NOW)
    runs = rollout_stands(WISHED, JOB, [POD], NOW)
    trouble = rollout_trouble({"control": held, "c001": held, "c002": runs})
    assert trouble.reason == "NoPods"
    assert "control, c001" in trouble.message
    assert not trouble.stalled
    assert rollout_trouble({"control": runs}) is None


def job_body(*, suspended=False, seconds=0):
    labels = {
        "app.kubernetes.io/component": "rollout",
        "forkcast.dev/candidate": "c000",
        "kueue.x-k8s.io/queue-name": "spare",
    }
    created = (NOW - dt.timedelta(seconds=seconds)).isoformat()
    meta = {"name": "b-c000-r10", "labels": labels, "creationTimestamp": created}
    return {"kind": "Job", "metadata": meta, "spec": {"suspend": suspended}}


def pod_body(message, phase="Pending"):
    held = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {
        "metadata": {"name": "p", "labels": {"batch.kubernetes.io/job-name": "b-c000-r10"}},
        "status": {"phase": phase, "conditions": [{**held, "message": message}]},
    }


@pytest.mark.parametrize(
    ("job", "pods", "short"),
    [
        (job_body(), [], False),
        (job_body(), [pod_body("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")], True),
        (job_body(), [pod_body("0/3 nodes are available: 3 Too many pods.")], True),
        (job_body(), [pod_body("3 Insufficient cpu.", "Failed")], False),  # of an earlier try
        (job_body(), [pod_body("0/3 nodes are available: 3 node(s) had untolerated taint")], False),
        (job_body(suspended=True, seconds=5), [], False),  # its admission is on its way
        (job_body(suspended=True, seconds=31), [], True),
    ],
)
def test_a_job_is_short_of_room_by_the_scheduler_or_by_its_queue(job, pods, short) -> None:
    (seen,) = rollout_jobs([job], pods, NOW)
    assert seen.short is short


def holding(*resources, queue="spare"):
    """A rollout's Job of namespace ml that requests them."""
    body = job_body()
    body["metadata"] |= {"namespace": "ml"}
    body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = queue
    wanted = {"requests": dict.fromkeys(resources, "1")}
    body["spec"]["template"] = {"spec": {"containers": [{"resources": wanted}]}}
    return body


def waiting_in(queue, *, seconds, namespace="ml"):
    body = job_body(suspended=True, seconds=seconds)
    body["metadata"] |= {"name": "other-trainer-0", "namespace": namespace}
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    return body


GPU = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("job", "workloads", "message", "pressed"),
    [
        (holding("cpu", GPU), [], "", False),
        (holding("cpu", GPU), [], f"0/3 nodes are available: 3 Insufficient {GPU}.", True),
        (holding("cpu"), [], f"0/3 nodes are available: 3 Insufficient {GPU}.", False),
        (holding("cpu"), [], f"2 Insufficient cpu, 1 Insufficient {GPU}. preemption: 0/3", True),
        (holding(), [], "3 Insufficient cpu.", True),  # what it holds is the namespace's default
        (holding("cpu"), [], "0/3 nodes are available: 3 Too many pods.", True),
        (holding("cpu"), [], "0/3 nodes are available: 3 node(s) had untolerated taint", False),
        (holding("cpu"), [waiting_in("spare", seconds=31)], "", True),
        (holding("cpu"), [waiting_in("spare", seconds=5)], "", False),  # is about to be admitted
        (holding("cpu"), [waiting_in("other", seconds=31)], "", False),
        (holding("cpu"), [waiting_in("spare", seconds=31, namespace="b")], "", False),
    ],
)
def test_what_any_run_waits_for_presses_on_the_rollouts_that_hold_it(
    job, workloads, message, pressed
) -> None:
    around = pressure(workloads, [pod_body(message)] if message else [], NOW)
    (seen,) = rollout_jobs([job], [], NOW, around)
    assert seen.pressed is pressed
    assert not seen.short


@pytest.fixture
def verifying(record) -> StoredBranch:
    made = Draft(
        seed=1,
        strategy="Lattice",
        source=DraftSource.HEURISTIC,
        model="",
        horizon=0,
        proxy=ProxyAnswer.UNAVAILABLE,
        detail="UNAVAILABLE",
        candidates=(Candidate(name="c000", action=Action(rewind_steps=13)),),
        finalists=("c000",),
    )
    phase = Verifying(
        branch=record.name,
        trigger=record.trigger,
        bases=(),
        draft=made,
        entrants=("control", "c000"),
        rung=10,
    )
    return StoredBranch(
        record=record,
        phase=phase,
        bases=(),
        draft=made,
        decision=None,
        rollouts={"control": WISHED, "c000": WISHED},
    )


def status_of(facts, stands, before=None) -> BranchStatus:
    before = before or BranchStatus()
    return branch_status(facts, [JOB], stands, before, generation=1, now=NOW)


def test_a_branch_whose_rollouts_do_not_run_says_so_once(verifying) -> None:
    held = {name: rollout_stands(WISHED, JOB, [], NOW) for name in ("control", "c000")}
    status = status_of(verifying, held)
    found = {one.type: one for one in status.conditions}
    assert found["Ready"].reason == found["Verified"].reason == "NoPods"
    assert all(one.message for one in status.conditions)
    assert {one.state for one in status.rollouts} == {RolloutState.PENDING}
    assert {one.reason for one in status.rollouts} == {"NoPods"}
    (said,) = [e for e in branch_events(verifying, BranchStatus(), status) if e.reason == "NoPods"]
    assert said.warning
    assert "control, c000" in said.note
    assert "NoPods" not in [e.reason for e in branch_events(verifying, status, status)]
    runs = dict.fromkeys(held, rollout_stands(WISHED, JOB, [POD], NOW))
    again = status_of(verifying, runs, status)
    assert {one.reason for one in again.conditions if one.type == "Ready"} == {"Verifying"}


def test_a_proxy_that_was_not_reached_is_an_event(verifying) -> None:
    runs = dict.fromkeys(("control", "c000"), rollout_stands(WISHED, JOB, [POD], NOW))
    reasons = {
        e.reason for e in branch_events(verifying, BranchStatus(), status_of(verifying, runs))
    }
    assert "ProxyUnavailable" in reasons
    asked = replace(verifying, draft=replace(verifying.draft, proxy=ProxyAnswer.ABSTAINED))
    reasons = {e.reason for e in branch_events(asked, BranchStatus(), status_of(asked, runs))}
    assert "ProxyUnavailable" not in reasons
