"""A run's status from what is seen: the reason of Ready, and what kstatus and kubectl make of it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from forkcast.decision import Outcome
from forkcast.records import StateKind
from forkcast_operator.kubernetes.events import run_events
from forkcast_operator.kubernetes.run_facts import Failure, RunFacts, StoreFacts
from forkcast_operator.kubernetes.run_state import run_state
from forkcast_operator.kubernetes.run_status import run_status, worth_writing
from forkcast_operator.kubernetes.seen import PodSeen, TrainerSeen, Work
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.documents import Complete
from forkcast_wire.resources import RunState, TrainingRunStatus
from tests.make import lineage_entry, state_ref

NOW = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
STORE = StoreFacts()
DONE = replace(
    STORE, complete=Complete(epoch=0, step=1000, tokens=9, validation_loss=2.5, seconds=1)
)


def trainer(work=Work.ACTIVE):
    return TrainerSeen(kind="Job", name="gpt-trainer-0", start=0, work=work, wanted=1)


def heard(ago):
    """The monitor's summary; ago: seconds since the last record, None before the first."""
    return pb.RunSummary(next_step=100, seconds_since_report=ago, streams=1)


def pod(*, ready=True, waiting="", message="", ready_for=3600):
    return PodSeen(
        name="p",
        created=NOW,
        mounting=False,
        ready=ready,
        scheduled=True,
        waiting=waiting,
        message=message,
        ready_at=NOW - dt.timedelta(seconds=ready_for) if ready else None,
    )


RUNNING = RunFacts(trainer=trainer(), pods=[pod()], store=STORE)
#: (facts, spec, Ready's reason, Ready, kstatus)
CASES = {
    "nothing yet": (RunFacts(store=STORE), {}, RunState.PENDING, "False", "InProgress"),
    "in a queue": (
        RunFacts(trainer=trainer(Work.QUEUED), store=STORE),
        {},
        RunState.QUEUED,
        "False",
        "InProgress",
    ),
    "pods start": (
        RunFacts(trainer=trainer(), pods=[pod(ready=False)], store=STORE),
        {},
        RunState.STARTING,
        "False",
        "InProgress",
    ),
    "runs": (RUNNING, {}, RunState.RUNNING, "True", "Current"),
    "a branch is open": (
        replace(RUNNING, store=replace(STORE, outcomes={"b": None})),
        {},
        RunState.BRANCHING,
        "True",
        "Current",
    ),
    "it was closed": (
        replace(RUNNING, store=replace(STORE, outcomes={"b": Outcome.NO_ACTION})),
        {},
        RunState.RUNNING,
        "True",
        "Current",
    ),
    "a branch is open, and the trainer's pod waits": (
        replace(
            RUNNING,
            pods=[pod(ready=False, waiting="Unschedulable", message="0/1 nodes")],
            store=replace(STORE, outcomes={"b": None}),
        ),
        {},
        RunState.STARTING,
        "False",
        "InProgress",
    ),
    "pods run and report nothing yet": (
        replace(RUNNING, summary=heard(None)),
        {},
        RunState.STARTING,
        "False",
        "InProgress",
    ),
    "the last report is of an earlier start": (
        replace(RUNNING, summary=heard(30), pods=[pod(ready_for=20)]),
        {},
        RunState.STARTING,
        "False",
        "InProgress",
    ),
    "steps come": (
        replace(RUNNING, summary=heard(10), pods=[pod(ready_for=20)]),
        {},
        RunState.RUNNING,
        "True",
        "Current",
    ),
    "no step for long": (
        replace(RUNNING, summary=heard(400), pods=[pod(ready_for=900)]),
        {},
        RunState.NO_PROGRESS,
        "False",
        "InProgress",
    ),
    "a rollout pod is still leaving": (
        RunFacts(store=STORE, pods_left=1),
        {"suspend": True},
        RunState.SUSPENDING,
        "False",
        "InProgress",
    ),
    "saving to be suspended": (
        RUNNING,
        {"suspend": True},
        RunState.SUSPENDING,
        "False",
        "InProgress",
    ),
    "suspended": (
        RunFacts(store=STORE),
        {"suspend": True},
        RunState.SUSPENDED,
        "False",
        "InProgress",
    ),
    "starts again": (
        replace(RUNNING, trainer=trainer(Work.FAILED), restarting_at=NOW),
        {},
        RunState.RESTARTING,
        "False",
        "InProgress",
    ),
    "complete": (replace(RUNNING, store=DONE), {}, RunState.COMPLETED, "True", "Current"),
    "complete and suspended": (
        RunFacts(store=DONE),
        {"suspend": True},
        RunState.COMPLETED,
        "True",
        "Current",
    ),
    "failed for good": (
        RunFacts(store=STORE, failed=("RestartsExceeded", "m")),
        {},
        RunState.FAILED,
        "False",
        "InProgress",
    ),
    "the store is away, training goes on": (
        RunFacts(
            trainer=trainer(), pods=[pod()], failure=Failure(reason="StoreUnavailable", message="m")
        ),
        {},
        RunState.RUNNING,
        "False",
        "InProgress",
    ),
    "it needs a person": (
        RunFacts(failure=Failure(reason="PrefixInUse", message="m", stalled=True)),
        {},
        RunState.PENDING,
        "False",
        "Failed",
    ),
}


def kstatus(generation, status) -> str:
    """As sigs.k8s.io/cli-utils/pkg/kstatus computes it for a kind it does not know."""
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    if status["observedGeneration"] != generation or conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_state_and_conditions(make_run, case) -> None:
    facts, spec, state, ready, expected = case
    run = make_run(**spec)
    assert run_state(run, run.parsed(), facts, NOW)[0] is state
    document = run_status(run, run.parsed(), facts, NOW).document()
    conditions = {one["type"]: one for one in document["conditions"]}
    assert conditions["Ready"]["status"] == ready
    assert kstatus(run.generation, document) == expected
    always = {"Ready", "Suspended", "Branching", "Stable", "CheckpointAvailable", "Complete"}
    assert always | {"Failed", "Finished"} <= set(conditions)
    assert all(one["observedGeneration"] == 3 for one in document["conditions"])
    ended = state in (RunState.COMPLETED, RunState.FAILED)
    assert (conditions["Finished"]["status"] == "True") is ended
    lasting = [c for c in document["conditions"] if c["type"] in always | {"Failed", "Finished"}]
    assert all(one["message"] for one in lasting)
    assert len({one["message"] for one in lasting}) == len(lasting)
    reasons = [one["reason"] for one in lasting if one["status"] == "False"]
    assert len(set(reasons)) == len(reasons)  # none is copied from another


def test_a_slow_run_is_given_the_time_of_its_steps(make_run) -> None:
    run = make_run()
    facts = replace(RUNNING, summary=heard(400))
    assert run_state(run, run.parsed(), facts, NOW)[0] is RunState.NO_PROGRESS
    slow = {"step": 100, "totalSteps": 1000, "estimatedRemainingSeconds": 60 * 900}
    run = replace(run, status={"progress": slow})
    assert run_state(run, run.parsed(), facts, NOW)[0] is RunState.RUNNING


def test_while_the_monitor_is_not_heard_its_certificate_is_named(make_run) -> None:
    run = make_run()
    facts = replace(RUNNING, summary=None, monitor_trouble="certificate has expired")
    made = run_status(run, run.parsed(), facts, NOW)
    (stable,) = [one for one in made.conditions if one.type == "Stable"]
    assert (stable.status, stable.reason) == ("Unknown", "NotReported")
    assert "certificate has expired" in stable.message


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        (pb.RunSummary(z=2.9, over_threshold=False), "True", "BelowThreshold"),
        (pb.RunSummary(z=1.1, over_threshold=True), "False", "OverThreshold"),
        (pb.RunSummary(z=0.0), "Unknown", "WarmingUp"),
        (None, "Unknown", "NotReported"),
    ],
)
def test_stable_is_what_the_monitor_says_whatever_z_is(make_run, said, status, reason) -> None:
    run = make_run()
    made = run_status(run, run.parsed(), replace(RUNNING, summary=said), NOW)
    (stable,) = [one for one in made.conditions if one.type == "Stable"]
    assert (stable.status, stable.reason) == (status, reason)


def test_rollouts_that_do_not_run_are_said_of_the_run_which_trains_on(make_run) -> None:
    run = make_run()
    why = Failure(reason="NoPods", message="rollouts control do not run: no pod")
    facts = replace(RUNNING, store=replace(STORE, outcomes={"b": None}), rollouts=why)
    made = run_status(run, run.parsed(), facts, NOW)
    held = {one.type: one for one in made.conditions}
    assert (held["Ready"].status, held["Ready"].reason) == ("True", "Branching")
    assert (held["Branching"].status, held["Branching"].reason) == ("True", "NoPods")
    assert made.last_failure.reason == "NoPods"
    events = run_events(TrainingRunStatus(), made, RunState.BRANCHING, "m")
    assert ("NoPods", True) in [(one.reason, one.warning) for one in events]


def test_after_an_adoption_step_and_epoch_are_of_the_same_lineage(make_run) -> None:
    run = make_run(training={"totalSteps": 10_000})
    entry = lineage_entry(
        run_uid=run.uid,
        decision_digest="0" * 64,
        state=state_ref(5051, StateKind.ROLLOUT),
        base_step=5000,
        trigger_step=5001,
    )
    seen = replace(RUNNING, store=replace(STORE, lineage=entry))
    for said, step in ((0, 5051), (1, 5790)):
        summary = pb.RunSummary(epoch=said, next_step=5790, seconds_since_report=1)
        made = run_status(run, run.parsed(), replace(seen, summary=summary), NOW)
        assert (made.lineage.epoch, made.progress.step) == (1, step)


def test_edits_of_running_pods_are_said_to_wait(make_run) -> None:
    run = make_run()
    state, message = run_state(run, run.parsed(), replace(RUNNING, edited=True), NOW)
    assert state is RunState.RUNNING
    assert "suspend and resume" in message


def test_checkpoints_that_stay_away_are_said(make_run) -> None:
    run = make_run(checkpoint={"everySteps": 40, "ringEverySteps": 10})
    late = replace(RUNNING, summary=pb.RunSummary(next_step=81, seconds_since_report=1))
    for step, reason in ((80, "NoneYet"), (81, "Late")):
        facts = replace(late, summary=pb.RunSummary(next_step=step, seconds_since_report=1))
        made = run_status(run, run.parsed(), facts, NOW)
        (found,) = [one for one in made.conditions if one.type == "CheckpointAvailable"]
        assert (found.status, found.reason) == ("False", reason)


def test_a_pod_that_cannot_start_is_named(make_run) -> None:
    run = make_run()
    waiting = pod(ready=False, waiting="ImagePullBackOff", message="no such image")
    facts = RunFacts(trainer=trainer(), pods=[waiting], store=STORE)
    assert run_state(run, run.parsed(), facts, NOW)[1] == "ImagePullBackOff: no such image"
    late = replace(facts, pods=[pod(ready=False)], late_mounts=True, secret="s3")
    assert "Secret s3" in run_state(run, run.parsed(), late, NOW)[1]


def summary(step):
    return pb.RunSummary(
        next_step=step,
        tokens=step * 10,
        loss=3.0,
        index=1.0,
        z=3.0,
        over_threshold=True,
        seconds_since_report=2,
    )


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf"), 1e300, -5e-324])
def test_whatever_figures_the_monitor_sends_the_status_holds(make_run, figure) -> None:
    run = make_run()
    sent = pb.RunSummary(next_step=9, loss=figure, grad_norm=figure, index=figure, z=figure)
    document = run_status(run, run.parsed(), replace(RUNNING, summary=sent), NOW).document()
    assert document["progress"]["step"] == 9
    assert not {"nan", "inf", "-inf"} & set(document.get("uncertainty", {}).values())
    again = replace(run, status=document)
    assert run_status(again, run.parsed(), RUNNING, NOW).progress.step == 9


def test_figures_alone_are_written_twice_a_minute_and_news_at_once(make_run) -> None:
    run = make_run()
    first = run_status(run, run.parsed(), replace(RUNNING, summary=summary(100)), NOW).document()
    again = replace(run, status=first)
    later = NOW + dt.timedelta(seconds=10)
    moved = run_status(
        again, run.parsed(), replace(RUNNING, summary=summary(110)), later
    ).document()
    assert moved["progress"]["step"] == 110
    assert moved["progress"]["estimatedRemainingSeconds"] > 0
    assert not worth_writing(first, moved, 10)
    assert worth_writing(first, moved, 30)
    calm = pb.RunSummary(
        next_step=111, index=0.1, z=0.1, over_threshold=False, seconds_since_report=1
    )
    news = run_status(again, run.parsed(), replace(RUNNING, summary=calm), later).document()
    assert worth_writing(first, news, 1)  # Stable has changed
    assert not worth_writing(first, first, 1000)


def test_a_status_that_somebody_broke_is_written_anew(make_run) -> None:
    run = replace(make_run(), status={"conditions": "nonsense"})
    assert run_status(run, run.parsed(), RUNNING, NOW).conditions


def test_events_are_one_word_and_come_with_a_change(make_run) -> None:
    run = make_run()
    before = TrainingRunStatus()
    after = run_status(run, run.parsed(), RUNNING, NOW)
    (event,) = run_events(before, after, RunState.RUNNING, "")
    assert (event.reason, event.warning) == ("Running", False)
    assert run_events(after, after, RunState.RUNNING, "") == []


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (replace(RUNNING, store=DONE), RunState.COMPLETED),
        (replace(RUNNING, store=replace(STORE, outcomes={"b": None})), RunState.BRANCHING),
    ],
)
def test_what_the_store_said_last_holds_while_it_is_away(make_run, seen, state) -> None:
    seen = replace(seen, store=replace(seen.store, attempts=3))
    run = make_run()
    before = run_status(run, run.parsed(), seen, NOW)
    run = replace(run, status=before.document())
    away = Failure(reason="StoreUnavailable", message="no answer")
    after = run_status(run, run.parsed(), replace(seen, store=None, failure=away), NOW)
    held = {c.type: (c.status, c.reason) for c in before.conditions if c.type != "Ready"}
    assert {c.type: (c.status, c.reason) for c in after.conditions if c.type != "Ready"} == held
    (ready,) = [c for c in after.conditions if c.type == "Ready"]
    assert (ready.status, ready.reason, ready.message) == ("False", away.reason, "no answer")
    assert run_state(run, run.parsed(), replace(seen, store=None, failure=away), NOW)[0] is state
    assert (after.trainer, after.completion_time) == (before.trainer, before.completion_time)


@pytest.mark.parametrize("store", [STORE, None])
def test_a_run_that_is_wanted_longer_than_it_has_run_is_not_complete(make_run, store) -> None:
    """Regression: a run that had ended once was complete for ever."""
    ended = RunFacts(trainer=trainer(Work.SUCCEEDED), store=DONE)
    before = run_status(make_run(), make_run().parsed(), ended, NOW)
    longer = {"training": {"totalSteps": 5000}}
    run = replace(make_run(**longer), status=before.document())
    seen = replace(ended, store=store)
    assert run_state(run, run.parsed(), seen, NOW)[0] is RunState.PENDING
    after = run_status(run, run.parsed(), seen, NOW)
    assert after.completion_time is None
    assert (after.progress.step, after.progress.total_steps) == (1000, 5000)
    states = {one.type: one.status for one in after.conditions}
    assert states["Complete"] == states["Finished"] == "False"
