"""The end of a run whose store does not take it: waited for, told, and recorded at the next start."""

import argparse
import json
import sys
import threading
from pathlib import Path

import pytest

from forkcast.records import StateKind
from forkcast_trainer import __main__ as command
from forkcast_trainer import run_end, train
from forkcast_trainer.train import TrainingRun
from forkcast_wire import keys, last_words
from forkcast_wire.completion import completion
from forkcast_wire.store import StoreUnavailable

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import MemoryStore, at_once

STEPS = 3
LAST = keys.state_manifest(keys.state(StateKind.CHECKPOINT, 0, 0, STEPS))


@pytest.fixture
def store(monkeypatch):
    """The store of every run of the test; waits are short."""
    made = MemoryStore()
    monkeypatch.setattr(train, "open_store", lambda *_: made)
    monkeypatch.setattr(train, "SHARED", False)  # another process has another memory
    monkeypatch.setattr(run_end, "_END_SECONDS", 0.2)
    monkeypatch.setattr(run_end, "_RETRY_SECONDS", 0.0)
    return made


@pytest.fixture
def attempt(new_run, tmp_path):
    """Makes an attempt of one run, in this process."""
    run = new_run(steps=STEPS)

    def make(number, stop=None):
        stop = stop or threading.Event()
        spec = run.manifest.spec
        return TrainingRun(spec, run.folder, monitor="", attempt=number, stop=stop)

    return make


def state_of(run):
    return json.loads((run.workdir / "progress.json").read_text())["state"]


def refuse_the_end(store, act):
    """What becomes of each access to complete.json."""

    def before(_access, key):
        if key == keys.COMPLETE:
            act()

    store.before = before


def away():
    raise StoreUnavailable("away")


@pytest.fixture
def silence():
    answers = threading.Event()
    yield answers.wait
    answers.set()


@pytest.mark.parametrize("kind", ["away", "silent"])
def test_an_end_that_cannot_be_recorded_is_left_to_the_next_start(
    store, attempt, silence, monkeypatch, kind
):
    monkeypatch.setattr(run_end, "MOST_END_SECONDS", 0.0)
    refuse_the_end(store, away if kind == "away" else silence)
    first = attempt(0)
    assert not first.run()
    assert not first.end.unsaved
    why = {"away": "away", "silent": "the store does not answer"}[kind]
    assert first.end.unrecorded == f"step {STEPS} is saved, the end is not on record yet: {why}"
    assert state_of(first) == "unrecorded"
    assert completion(MemoryStore(store.objects), STEPS) is None
    store.before = at_once
    again = attempt(1)
    assert again.engine.position.step == STEPS  # nothing is trained again
    assert again.run()
    assert state_of(again) == "finished"
    assert completion(store, STEPS).step == STEPS


def test_orders_are_heard_while_the_end_waits_for_a_silent_store(store, attempt, silence):
    stop, asked = threading.Event(), threading.Event()

    def act():
        asked.set()
        silence()

    refuse_the_end(store, act)
    threading.Thread(target=lambda: asked.wait() and stop.set(), daemon=True).start()
    run = attempt(0, stop)
    assert not run.run()
    assert (run.end.unrecorded, state_of(run)) == (None, "stopped")


def test_a_state_that_is_saved_nowhere_is_not_given_up(store, attempt, monkeypatch):
    monkeypatch.setattr(run_end, "MOST_END_SECONDS", 0.0)
    tries = 0

    def before(access, key):
        nonlocal tries
        if access == "put" and f"/{STEPS:012d}/" in key and tries < 4:
            tries += 1
            away()

    store.before = before
    run = attempt(0)
    assert run.run()
    assert tries == 4
    assert completion(store, STEPS).step == STEPS


def test_a_state_that_the_end_has_saved_is_not_saved_again(store, attempt):
    """Regression: a checkpoint that was still due failed, and the console said that nothing is saved."""
    run, tries, saves = attempt(0), 0, 0

    def before(access, key):
        nonlocal tries, saves
        saves += access == "put" and key == LAST
        if key == keys.COMPLETE and tries < 4:
            tries += 1
            run.boundary.due.add(StateKind.CHECKPOINT)
            away()

    store.before = before
    assert run.run()
    assert (tries, saves, run.saver.error) == (4, 1, "")


def test_the_process_says_so_and_has_an_exit_code_of_its_own(store, new_run, monkeypatch, capsys):
    monkeypatch.setattr(run_end, "MOST_END_SECONDS", 0.0)
    monkeypatch.setattr(command, "_beat", lambda *_: None)
    refuse_the_end(store, away)
    run = new_run(steps=STEPS)
    given = argparse.Namespace(
        run=None,
        workdir=run.folder,
        manifest=run.folder / "manifest.json",
        claim_attempt=False,
        monitor="",
        attempt=0,
    )
    assert command._train(given, threading.Event(), 1) == (last_words.NOT_RECORDED, True)
    words = last_words.heard(capsys.readouterr().err.splitlines())
    assert words.reason is last_words.Ended.END_NOT_RECORDED
    assert words.text.endswith("not on record yet: away")
