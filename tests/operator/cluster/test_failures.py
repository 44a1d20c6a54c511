"""What a run's conditions call the things that go wrong around it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from forkcast_operator.kubernetes.cluster import ClusterError
from forkcast_operator.kubernetes.failures import (
    refused,
    store_unavailable,
    trainer_ended,
    trainer_trouble,
)
from forkcast_operator.kubernetes.run import store_place
from forkcast_operator.kubernetes.seen import (
    PodSeen,
    TrainerSeen,
    Work,
    disrupted,
    last_words,
    pod_seen,
)
from forkcast_wire.store import StoreUnavailable

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
TRAINER = TrainerSeen(
    kind="Job",
    name="gpt-trainer-0",
    start=0,
    work=Work.ACTIVE,
    wanted=1,
    created=NOW - dt.timedelta(seconds=31),
)
POD = PodSeen(name="p", created=NOW, mounting=False, ready=True, scheduled=True, node="n1")


def pod(phase="Running", **conditions):
    held = [{"type": kind, "status": status} for kind, status in conditions.items()]
    return {
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase, "conditions": held},
    }


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        (pod(Ready="True", ContainersReady="True"), False),
        (pod(Ready="False", ContainersReady="False"), False),  # a kubelet says so: it starts
        (pod(Ready="False", ContainersReady="True"), True),
        (pod("Pending", Ready="False", ContainersReady="True"), False),
        (pod("Failed", Ready="False", ContainersReady="True"), False),
        (pod("Pending"), False),
    ],
)
def test_a_pod_is_lost_where_the_node_controller_took_ready_away(body, lost) -> None:
    seen = pod_seen(body)
    assert (seen.lost, seen.node) == (lost, "n1")


def test_a_lost_node_is_named() -> None:
    failure = trainer_trouble(TRAINER, [replace(POD, lost=True), POD], NOW)
    assert failure.reason == "NodeLost"
    assert "node n1" in failure.message
    assert trainer_trouble(TRAINER, [POD], NOW) is None


@pytest.mark.parametrize(
    ("trainer", "pods", "reason"),
    [
        (TRAINER, [], "NoPods"),
        (TRAINER, [replace(POD, ready=False)], None),
        (replace(TRAINER, created=NOW - dt.timedelta(seconds=29)), [], None),
        (replace(TRAINER, work=Work.QUEUED), [], None),
        (replace(TRAINER, work=Work.FAILED), [], None),
        (None, [], None),
    ],
)
def test_a_workload_without_pods_is_said_after_a_while(trainer, pods, reason) -> None:
    failure = trainer_trouble(trainer, pods, NOW)
    assert (failure.reason if failure else None) == reason


def test_an_evicted_pod_is_told_in_the_kubelets_words() -> None:
    said = 'Usage of EmptyDir volume "work" exceeds the limit "1Mi".'
    ended = {"exitCode": 137, "message": '{"kind": "Checkpoint", "event": "saver.saved"}'}
    status = {"phase": "Failed", "reason": "Evicted", "message": said}
    status["containerStatuses"] = [{"state": {"terminated": ended}}]
    remedy = "raise spec.resources.scratch"
    assert last_words([{"metadata": {}, "status": status}]) == f"Evicted: {said}; {remedy}"


def test_only_pods_of_the_start_that_the_cluster_ended_are_disruptions() -> None:
    def body(job, **conditions):
        made = pod("Failed", **conditions)
        made["metadata"]["labels"] = {"batch.kubernetes.io/job-name": job}
        return made

    target = {"DisruptionTarget": "True"}
    assert disrupted([body("t-1"), body("t-1", **target)], "t-1")
    assert not disrupted([body("t-0", **target), body("t-1")], "t-1")  # of an earlier start
    assert not disrupted([body("t-1", DisruptionTarget="False")], "t-1")


@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
def test_what_may_succeed_another_time_is_no_refusal(status) -> None:
    assert refused("Trainer", ClusterError("create:Job", status, "m")) is None


def test_a_refusal_carries_the_servers_words() -> None:
    failure = refused("Rollout", ClusterError("create:Job", 422, "spec.x: invalid"))
    assert failure.stalled
    assert (failure.reason, failure.message) == ("RolloutRefused", "spec.x: invalid")


def test_a_store_that_is_away_is_told_in_the_same_words_for_every_object(make_run, config) -> None:
    run = make_run()
    place = store_place(run, run.parsed(), config)
    one, two = (
        store_unavailable(place, StoreUnavailable(f"{key}: refused", why="refused"))
        for key in ("run.json", "lineage/1.json")
    )
    assert one == two
    assert one.message == "https://s3.example runs: refused"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("exit code 1: ended: Hung: rank 0", ("Hung", "rank 0")),
        ("exit code 137: OOMKilled", ("TrainerFailed", "exit code 137: OOMKilled")),
        ("", ("TrainerFailed", "BackoffLimitExceeded")),
    ],
)
def test_the_reason_that_a_trainer_gives_is_the_conditions(said, expected) -> None:
    assert trainer_ended("TrainerFailed", "BackoffLimitExceeded", said) == expected


def test_a_trainers_reason_is_found_before_what_its_launcher_says() -> None:
    message = "{}\nended: NoUsableState: none\nTraceback\nChildFailedError\n"
    ended = {"state": {"terminated": {"exitCode": 1, "message": message}}}
    status = {"phase": "Failed", "containerStatuses": [ended]}
    said = last_words([{"metadata": {}, "status": status}])
    assert trainer_ended("x", "", said) == ("NoUsableState", "none")
