"""Two processes under torchrun, started as the supervisor starts them, train as one would: the same
losses, exact over a stop and a resume, and of one mind about a collapse.

Starting torchrun costs seconds, so the starts are shared: one run from end to end, and one that is
collapsed, stopped and resumed.
"""

import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.lineage import key as lineage_key
from forkcast.records import StateKind, Trial
from forkcast_trainer import checkpoint, state
from forkcast_trainer.placement import placement
from forkcast_trainer.rollout import Rollout
from forkcast_trainer.step import Engine
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob, RolloutUntil, saved_states
from forkcast_wire.store import FolderStore, put_document, read_document
from tests.one_step import one_step
from tests.waiting import until

STEPS, BASE, TRIGGER, RUNG = 40, 10, 15, 10
RUN = {"processes": 2, "steps": STEPS, "ring": BASE}
#: One process sums a step's gradients in another order than two do.
CLOSE = 2e-4


@contextmanager
def ended(process):
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def losses_of(listener, epoch=0):
    return {key.step: one.loss for key, one in listener.stats.items() if key.epoch == epoch}


def ring_state(store, step):
    return next(ref for ref in saved_states(store, StateKind.RING) if ref.step == step)


def last_state(store):
    ref = saved_states(store, StateKind.CHECKPOINT)[-1]
    return checkpoint.fetch(store, ref, store.root / "scratch", "u")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_in, listening_in):
    """A run from its first step to its last."""
    folder = tmp_path_factory.mktemp("whole")
    run = run_in(folder / "r", **RUN)
    with listening_in(folder) as monitor, ended(run.start_supervised(monitor.target)) as process:
        assert process.wait() == 0
    return SimpleNamespace(run=run, store=FolderStore(run.folder), listener=monitor.listener)


@pytest.fixture(scope="module")
def forked(whole, tmp_path_factory, run_in, listening_in):
    """The same run, collapsed in its first steps onto the state that the whole one had at BASE, held
    some steps later, stopped by SIGTERM, started again.
    """
    folder = tmp_path_factory.mktemp("forked")
    run = run_in(folder / "r", **RUN)
    store = FolderStore(run.folder)
    winner = replace(ring_state(whole.store, BASE), key="rollouts/b/c0/end", kind=StateKind.ROLLOUT)
    shutil.copytree(whole.store.root / ring_state(whole.store, BASE).key, store.root / winner.key)
    shutil.copytree(whole.run.folder / "tokens", run.folder / "tokens")
    entry = LineageEntry(
        epoch=1,
        run_uid="u",
        branch="b",
        decision_digest="d",
        action=Action(),
        state=winner,
        base_step=BASE,
        trigger_step=TRIGGER,
    )
    with listening_in(folder) as monitor:
        listener = monitor.listener

        def collapse():
            put_document(store, lineage_key(1), entry)
            what = pb.Collapse(branch="b", epoch=1, decision_digest="d")
            listener.tell(id="c", collapse=what)

        # nothing is answered before the hello is: once a step has come, the trainer knows what it was
        # told then. It waits for that at its 5th step, and in the next epoch at its 20th.
        waits = {number: folder / f"goes-on-{number}" for number in (5, 20)}
        told = ";".join(f"trainer/step/{number}:{file}" for number, file in waits.items())
        first, second = waits.values()
        hold = pb.Hold(branch="b1", deadline_seconds=100_000)
        listener.at_hello = {0: collapse, 1: lambda: listener.tell(id="h", hold=hold)}
        with ended(run.start_supervised(monitor.target, FORKCAST_WAIT=told)) as process:
            for epoch, file in enumerate((first, second)):
                until(lambda epoch=epoch: losses_of(listener, epoch), f"a step of epoch {epoch}")
                file.touch()
            until(lambda: held_in(run, 1), "the hold in epoch 1")
            ranks = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait()
        stopped = SimpleNamespace(
            progress=run.progress(),
            left=[one for one in ranks if one.is_running() and one.status() != "zombie"],
            ranks=len(ranks),
            state=last_state(store),
        )
        with ended(run.start_supervised(monitor.target)) as process:
            assert process.wait() == 0
    return SimpleNamespace(run=run, store=store, listener=listener, stopped=stopped)


def held_in(run, epoch):
    progress = run.progress()
    return progress.get("state") == "held" and progress["epoch"] == epoch and progress["step"]


def test_its_losses_are_those_of_one_process_with_all_micro_batches(whole, tmp_path):
    assert sorted(losses_of(whole.listener)) == list(range(STEPS))
    spec = whole.run.manifest.spec
    alone = Engine(spec, "u", tmp_path, placement(spec))
    for step in range(STEPS):
        stats = one_step(alone)
        seen = whole.listener.stats[stats.key]
        assert seen.loss == pytest.approx(stats.loss, rel=CLOSE), step
        assert seen.grad_norm == pytest.approx(stats.grad_norm, rel=10 * CLOSE), step
        assert seen.tokens == stats.tokens


def test_one_process_for_two_is_one_process_with_twice_the_micro_batches(tiny, tmp_path):
    """Bit by bit, where nothing is dropped: the ranks' micro-batches come in turn."""
    two = tiny(dropout="0", processes=2).spec
    one = tiny(dropout="0", gradientAccumulationSteps=2).spec
    engines = [Engine(spec, "u", tmp_path, placement(spec)) for spec in (two, one)]
    for _ in range(5):
        a, b = (one_step(engine) for engine in engines)
        assert (a.loss, a.grad_norm, a.tokens) == (b.loss, b.grad_norm, b.tokens)


def test_both_ranks_adopt_a_collapse_and_go_on_as_from_that_state(whole, forked):
    """With dropout the losses are equal only where both ranks have taken over weights, moments,
    sampler and their own generators.
    """
    expected, seen = losses_of(whole.listener), losses_of(forked.listener, 1)
    assert [(one.epoch, one.start_step) for one in forked.listener.hellos][:2] == [
        (0, 0),
        (1, BASE),
    ]
    assert len(losses_of(forked.listener)) < STEPS  # epoch 0 was left
    assert seen == {step: expected[step] for step in range(BASE, STEPS)}


def test_sigterm_saves_where_it_stands_and_all_ranks_leave(forked):
    stopped = forked.stopped
    assert stopped.ranks >= 2
    assert stopped.left == []
    assert stopped.progress["state"] == "stopped"
    assert BASE <= stopped.state.meta["step"] == stopped.progress["step"] < STEPS
    assert (stopped.state.meta["epoch"], stopped.state.meta["world"]) == (1, 2)
    assert "rng.torch.rank1" in stopped.state.tensors


def test_after_a_stop_and_a_resume_the_last_state_is_the_same_to_the_bit(whole, forked):
    one, other = last_state(whole.store), last_state(forked.store)
    assert forked.listener.hellos[-1].attempt == 1
    assert forked.listener.hellos[-1].start_step == forked.stopped.state.meta["step"]
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    for name in set(one.meta) - {"epoch", "attempt"}:
        assert one.meta[name] == other.meta[name], name


def control(store, spec, workdir):
    """The losses of the control from BASE to TRIGGER + RUNG, and its end state."""
    job = RolloutJob(
        run_uid="u",
        trigger_id="e0-t15",
        candidate="control",
        action=Action(),
        base=ring_state(store, BASE),
        trigger_step=TRIGGER,
        rungs=(RUNG,),
        publish_from=RUNG,
    )
    put_document(store, keys.rollout_until(job.trigger_id, job.candidate), RolloutUntil(until=RUNG))
    Rollout(job, spec, store, workdir).run()
    trial = read_document(store, Trial, keys.rollout_trial(job.trigger_id, job.candidate, RUNG))
    return trial.losses, checkpoint.fetch(store, trial.state, workdir / "scratch", "u")


def test_the_control_of_two_processes_sees_what_they_see(whole, tmp_path):
    """The same batches and the same dropout: its losses and its end state are the main run's."""
    spec = whole.run.manifest.spec
    losses, end = control(whole.store, spec, whole.run.folder)
    expected = losses_of(whole.listener)
    assert losses == pytest.approx([expected[n] for n in range(BASE, TRIGGER + RUNG)], rel=CLOSE)
    main = Engine(spec, "u", tmp_path, placement(spec))
    state.restore(
        main, checkpoint.fetch(whole.store, ring_state(whole.store, 20), tmp_path / "scratch", "u")
    )
    for _ in range(5):
        main.step()
    after = state.snapshot(main)
    assert end.meta["sampler"] == after.meta["sampler"]
    assert all(
        torch.equal(end.tensors[name], after.tensors[name])
        for name in ("rng.torch", "rng.torch.rank1")
    )


def test_the_control_of_one_process_is_the_main_run_to_the_bit(make_engine, tmp_path):
    main = make_engine()
    store, losses = FolderStore(tmp_path), []
    for step in range(TRIGGER + RUNG):
        if step == BASE:
            folder = keys.state(StateKind.RING, 0, 0, BASE)
            checkpoint.publish(
                store, state.snapshot(main), folder, StateKind.RING, tmp_path / "scratch", 1
            )
        losses.append(one_step(main).loss)
    seen, end = control(store, main.spec, tmp_path)
    assert list(seen) == losses[BASE:]
    after = state.snapshot(main)
    assert all(torch.equal(end.tensors[name], after.tensors[name]) for name in after.tensors)
