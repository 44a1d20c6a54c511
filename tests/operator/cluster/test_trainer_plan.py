"""What is done with a trainer, in a table of situations."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from forkcast_operator.kubernetes.seen import TrainerSeen, Work, trainer_seen
from forkcast_operator.kubernetes.trainer_plan import (
    EndTrainer,
    FailRun,
    Leave,
    StartTrainer,
    active_seconds,
    asks_for_retry,
    plan_trainer,
)
from forkcast_wire.manifest_pods import Lifecycle

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
RULES = Lifecycle.model_validate(
    {"maxRestarts": 3, "restartBackoffSeconds": 30, "activeDeadlineSeconds": 60}
)


def seen(work, start=0, reason="", ago=0):
    ended = NOW - dt.timedelta(seconds=ago)
    return TrainerSeen(
        kind="Job",
        name=f"t-{start}",
        start=start,
        work=work,
        wanted=1,
        reason=reason,
        ended_at=ended,
    )


CASES = {
    "none: start": (None, {}, StartTrainer(0, 0)),
    "running": (seen(Work.ACTIVE), {}, Leave()),
    "queued": (seen(Work.QUEUED), {}, Leave()),
    "complete": (seen(Work.SUCCEEDED), {"complete": True}, Leave()),
    "complete, its object gone": (None, {"complete": True}, Leave()),
    "suspended": (seen(Work.ACTIVE), {"wanted": False}, EndTrainer("t-0")),
    "suspended and going": (seen(Work.GOING), {"wanted": False}, Leave()),
    "suspended, gone": (None, {"wanted": False}, Leave()),
    "going: wait for its end": (seen(Work.GOING), {}, Leave()),
    "asked to go by others: at once": (
        seen(Work.SUCCEEDED, 2),
        {"failures": 1},
        StartTrainer(3, 1),
    ),
    "failed just now: wait": (seen(Work.FAILED, ago=10), {}, Leave(20)),
    "failed a while ago": (seen(Work.FAILED, ago=30), {}, StartTrainer(1, 1)),
    "the wait doubles": (seen(Work.FAILED, 1, ago=30), {"failures": 1}, Leave(30)),
    "too often": (seen(Work.FAILED, 3, ago=900), {"failures": 3}, "RestartsExceeded"),
    "disrupted: after the first wait, whatever failed before": (
        seen(Work.FAILED, 3, ago=30),
        {"failures": 3, "disrupted": True},
        StartTrainer(4, 3),
    ),
    "disrupted just now": (
        seen(Work.FAILED, 3, ago=10),
        {"failures": 3, "disrupted": True},
        Leave(20),
    ),
    "disrupted and of no use": (
        seen(Work.FAILED, reason="PodFailurePolicy", ago=900),
        {"disrupted": True},
        "Unusable",
    ),
    "of no use": (seen(Work.FAILED, reason="PodFailurePolicy", ago=900), {}, "Unusable"),
    "asked to try again: at once, and counted anew": (
        seen(Work.FAILED, 3, reason="PodFailurePolicy"),
        {"failures": 3, "retried": True},
        StartTrainer(4, 0),
    ),
    "asked again, its object gone": (None, {"failures": 3, "retried": True}, StartTrainer(3, 0)),
    "asked again, and under way": (seen(Work.ACTIVE, 4), {"retried": True}, Leave()),
    "over time in all, though no start was": (
        seen(Work.SUCCEEDED, 2),
        {"active_seconds": 60},
        "DeadlineExceeded",
    ),
    "edited, and no pod can start": (seen(Work.ACTIVE, 2), {"stuck": True}, EndTrainer("t-2")),
    "edited and in its queue": (seen(Work.QUEUED, 2), {"stuck": True}, Leave()),
    "time is left": (seen(Work.SUCCEEDED, 2), {"active_seconds": 59}, StartTrainer(3, 0)),
    "over time": (seen(Work.FAILED, reason="DeadlineExceeded"), {}, "DeadlineExceeded"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plan(case) -> None:
    trainer, given, expected = case
    facts = {"wanted": True, "complete": False, "failures": 0, **given}
    act = plan_trainer(trainer, RULES, now=NOW, **facts)
    if isinstance(expected, str):
        assert isinstance(act, FailRun)
        assert act.reason == expected
    else:
        assert act == expected


def test_the_time_of_every_start_is_counted_once() -> None:
    ended = replace(seen(Work.FAILED, 1), started_at=NOW - dt.timedelta(seconds=40))
    assert active_seconds(7, "t-0", ended) == (47, "t-1")
    assert active_seconds(47, "t-1", ended) == (47, "t-1")
    running = replace(ended, work=Work.ACTIVE, ended_at=None)
    assert active_seconds(7, "t-0", running) == (7, "t-0")
    assert active_seconds(7, "t-0", None) == (7, "t-0")


@pytest.mark.parametrize(
    ("generations", "asked", "answered", "retry"),
    [
        ((3, 3), "", "", False),
        ((3, 4), "", "", True),
        ((3, 3), "1", "", True),
        ((3, 3), "1", "1", False),
        ((3, 3), "2", "1", True),
    ],
)
def test_a_failed_run_goes_on_after_an_edit_or_once_for_each_value_of_the_annotation(
    generations, asked, answered, retry
) -> None:
    failed = replace(seen(Work.FAILED), retry=answered)
    assert asks_for_retry(*generations, asked, failed) is retry


def test_the_newest_start_counts_and_a_jobset_s_own_job_does_not() -> None:
    def body(name, start, kind="Job", **status):
        labels = {"app.kubernetes.io/component": "trainer"}
        if start is not None:
            labels["forkcast.dev/start"] = str(start)
        meta = {"name": name, "namespace": "n", "labels": labels}
        return {"kind": kind, "metadata": meta, "spec": {"parallelism": 2}, "status": status}

    failed = {
        "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
    }
    found = trainer_seen([body("a", 0, **failed), body("b", 1), body("b-node-0", None)])
    assert (found.name, found.work, found.wanted) == ("b", Work.ACTIVE, 2)
