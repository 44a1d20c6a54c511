"""The local world over a real folder store and a real gRPC server, to a branch's end and back."""

from __future__ import annotations

import json
import time
from concurrent import futures
from dataclasses import replace

import grpc
import numpy as np
import pytest

from forkcast.branch import branch_name
from forkcast.branch_rules import BranchRules
from forkcast.commands import Release
from forkcast.decision import CONTROL, Decision, Outcome, Reason
from forkcast.loop import reconcile
from forkcast.phases import Deciding, Finished, Forking, Phase
from forkcast.records import (
    WINDOW_COLUMNS,
    StateKind,
    StateRef,
    Trial,
    TrialStatus,
    Window,
)
from forkcast_operator import clock
from forkcast_operator.local import LocalWorld
from forkcast_operator.stored import MonitorUnavailableError
from forkcast_wire import catalogue, keys
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.branches import BranchRecord, saved_phase
from forkcast_wire.channel import listen, open_channel
from forkcast_wire.codec import window_to_wire
from forkcast_wire.completion import record
from forkcast_wire.documents import (
    Complete,
    RolloutJob,
    RolloutUntil,
    lineage_head,
)
from forkcast_wire.forkcast_pb2_grpc import (
    MonitorServicer,
    MonitorStub,
    add_MonitorServicer_to_server,
)
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import FolderStore, put_document, read_document
from tests.make import saved_state, state_ref, trigger

SPEC = TrainingRunSpec.model_validate(
    {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 1000},
        "branching": {"candidates": 32, "topK": 3},
    }
)
TRIGGER = trigger()
RULES = BranchRules(rungs=(10, 25), confirm_steps=40, depths=(0, 50))


class SmallMonitor(MonitorServicer):
    """Answers as a monitor with a calm run behind it."""

    def __init__(self) -> None:
        self.directives: list[str] = []
        self.lies: pb.WindowReply | None = None

    def GetWindow(self, request, context):
        if self.lies is not None:
            return self.lies
        columns = {name: np.arange(100.0) for name in WINDOW_COLUMNS}
        window = Window(run_uid="u", epoch=0, total_steps=1000, columns=columns)
        return pb.WindowReply(window=window_to_wire(window))

    def PostDirective(self, request, context):
        self.directives.append(request.directive.id)
        return pb.PostDirectiveResponse()


@pytest.fixture
def monitor(tmp_path):
    service, server = SmallMonitor(), grpc.server(futures.ThreadPoolExecutor(2))
    add_MonitorServicer_to_server(service, server)
    target = f"unix:{tmp_path}/m.sock"
    listen(server, target)
    server.start()
    with open_channel(target) as channel:
        yield service, MonitorStub(channel)
    server.stop(None)


def state(kind: StateKind, key: str, step: int, epoch: int = 0) -> StateRef:
    return state_ref(step, kind, key=key, epoch=epoch, attempt=1)


def publish_trials(store, *, better: bool = True) -> None:
    """What rollouts would: a trial and an end state for whatever is wanted; better: c0.. are."""
    for info in list(store.list("rollouts/")):
        if not info.key.endswith("/job.json"):
            continue
        job = read_document(store, RolloutJob, info.key)
        wish = read_document(store, RolloutUntil, keys.rollout_until(job.trigger_id, job.candidate))
        rung = wish.until if wish else None
        where = (job.trigger_id, job.candidate)
        if rung is None or store.head(keys.rollout_trial(*where, rung)) is not None:
            continue
        step = job.trigger_step + rung
        end = state(StateKind.ROLLOUT, keys.rollout_state(*where, rung), step)
        losses = tuple(3.0 + 0.1 * (-1) ** s for s in range(job.base.step, step))
        loss = 2.8 if better and job.candidate != CONTROL else 3.0
        trial = Trial(
            candidate=job.candidate,
            rung=rung,
            step=step,
            status=TrialStatus.OK,
            validation_loss=loss,
            mean_weights_loss=loss,
            losses_from=job.base.step,
            losses=losses,
            spike_steps=(),
            steps_run=len(losses),
            seconds=1.0,
            state=saved_state(store, end),
        )
        put_document(store, keys.rollout_trial(*where, rung), trial)


@pytest.fixture
def world(tmp_path, monitor):
    store = FolderStore(tmp_path / "store")
    for step in (25, 50, 75, 98, 100):
        saved_state(store, state(StateKind.RING, keys.state(StateKind.RING, 0, 1, step), step))
    record = BranchRecord(
        name=branch_name("run", TRIGGER), trigger=TRIGGER, rules=RULES, opened_at=clock.now()
    )
    return LocalWorld(SPEC, store, record, monitor[1], None, tmp_path)


def start(world) -> Phase:
    return Forking(branch=world.record.name, trigger=TRIGGER)


def test_a_branch_goes_to_its_end_with_an_operator_that_forgets_between_passes(
    world, monitor
) -> None:
    store = world.store
    for _ in range(60):
        phase = saved_phase(store, TRIGGER.id) or start(world)  # as after a restart
        if isinstance(phase, Finished):
            break
        reconcile(world, phase, RULES)
        publish_trials(store)
        if "collapse/1" in monitor[0].directives:  # the trainer has adopted
            key = keys.state(StateKind.CHECKPOINT, 1, 1, 140)
            saved_state(store, state(StateKind.CHECKPOINT, key, 140, epoch=1))
    assert isinstance(phase, Finished)
    assert phase.outcome is Outcome.ACCEPTED
    decision = read_document(store, Decision, keys.branch_file(TRIGGER.id, "decision"))
    assert [base.step for base in decision.bases] == [75, 25]
    assert lineage_head(store).decision_digest == decision.digest
    assert catalogue.read(store).pins == {}
    left = [i.key for i in store.list("rollouts/") if i.key.endswith("/manifest.json")]
    assert left == [keys.state_manifest(decision.adopted.key)]
    posted = dict.fromkeys(monitor[0].directives)
    assert list(posted) == [f"hold/{TRIGGER.id}", "collapse/1", f"release/{TRIGGER.id}"]


def test_a_branch_sees_the_end_only_if_it_is_the_one_wanted_now(world, tmp_path) -> None:
    done = Complete(epoch=0, step=1000, tokens=1, validation_loss=2.0, seconds=1.0)
    record(world.store, done)
    assert world.observe(start(world)).run_finished
    training = SPEC.training.model_copy(update={"total_steps": 3000})
    longer = SPEC.model_copy(update={"training": training})
    again = LocalWorld(longer, world.store, world.record, world._monitor, None, tmp_path)
    assert not again.observe(start(world)).run_finished


def test_a_lost_release_comes_again_while_the_run_is_held(world, monitor, tmp_path) -> None:
    progress = tmp_path / "progress.json"
    progress.write_text(json.dumps({"state": "held"}))
    release = Release(
        branch=world.record.name, outcome=Outcome.NO_ACTION, reason=Reason.RUN_FINISHED
    )
    world.do(release)
    assert not world.observe(start(world)).released
    world.do(release)
    progress.write_text(json.dumps({"state": "running"}))
    assert world.observe(start(world)).released
    assert monitor[0].directives == [f"release/{TRIGGER.id}"] * 2


def test_a_dead_monitor_delays_the_verdict_until_the_deadline(world, tmp_path) -> None:
    with open_channel(f"unix:{tmp_path}/nobody.sock") as channel:
        stub = MonitorStub(channel)
        alone = LocalWorld(SPEC, world.store, world.record, stub, None, tmp_path)
        assert alone.observe(start(world)).main_losses == {}
        deciding = Deciding(
            branch=world.record.name, trigger=TRIGGER, bases=(), draft=None, cut_short=False
        )
        with pytest.raises(MonitorUnavailableError, match="UNAVAILABLE: "):
            alone.observe(deciding)
        late = replace(world.record, opened_at=0.0)
        expired = LocalWorld(SPEC, world.store, late, stub, None, tmp_path).observe(deciding)
        assert expired.expired
        assert not expired.main_over_threshold


@pytest.mark.parametrize("column", [None, "step"])
def test_a_monitor_whose_answer_is_no_window_is_one_that_does_not_answer(
    world, monitor, column
) -> None:
    """Regression: the answer ended the whole pass, and with it whatever else the run needed."""
    columns = {name: np.arange(9.0) for name in WINDOW_COLUMNS}
    if column is not None:
        columns[column] = np.full(9, np.nan)
    made = window_to_wire(Window(run_uid="u", epoch=0, total_steps=1000, columns=columns))
    monitor[0].lies = pb.WindowReply(window=None if column is None else made)
    deciding = Deciding(
        branch=world.record.name, trigger=TRIGGER, bases=(), draft=None, cut_short=False
    )
    with pytest.raises(MonitorUnavailableError, match="is no window"):
        world.observe(deciding)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_jump_of_the_machines_clock_ends_no_branch_and_keeps_none_open(
    world, monkeypatch, jump
) -> None:
    before = world._seconds_left()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert abs(world._seconds_left() - before) < 600  # neither an hour more nor less
    assert not world.observe(start(world)).expired
