"""A store that accepts and never answers must not stop training, whatever the run was told."""

import json
import math
import secrets
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.lineage import key as lineage_key
from forkcast.records import StateKind
from forkcast_trainer import orders
from forkcast_trainer.newer_epoch import NewerEpoch, NewerEpochReader, Newest
from forkcast_trainer.orders import Orders
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.documents import saved_states
from forkcast_wire.manifest import TrainingRun as Manifest
from forkcast_wire.store import StoreUnavailable, open_store, put_document
from tests.silent_line import Line
from tests.versitygw import Versitygw
from tests.waiting import until

BASE = 10


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    server = Versitygw(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def remote(gateway, run_in, tmp_path):
    """(a run whose store is behind a line, the line, the store as others see it)."""
    bucket = f"b{secrets.token_hex(6)}"
    gateway.make_bucket(bucket)
    line = Line(int(gateway.endpoint.rpartition(":")[2]))
    run = run_in(tmp_path / "r", steps=10**8, ring=BASE, every=10**6)
    document = run.manifest.document()
    document["spec"]["storage"] = {
        "endpoint": f"http://127.0.0.1:{line.port}",
        "bucket": bucket,
        "prefix": "r/",
        "credentialsDir": str(gateway.credentials),
    }
    run.manifest = Manifest.model_validate(document)
    (run.folder / "manifest.json").write_text(json.dumps(run.manifest.document()))
    document["spec"]["storage"]["endpoint"] = gateway.endpoint
    direct = open_store(Manifest.model_validate(document).spec.storage, tmp_path)
    yield run, line, direct
    line.close()


def test_training_goes_on_while_a_silent_store_keeps_the_state_of_a_collapse(remote, monitor):
    run, line, store = remote
    process = run.start(monitor.target)
    try:
        until(lambda: saved_states(store, StateKind.RING) and run.progress().get("step"), "a state")
        line.fall_silent()
        what = pb.Collapse(branch="b", epoch=1, decision_digest="d")
        monitor.listener.tell(id="h", hold=pb.Hold(branch="b", deadline_seconds=100_000))
        monitor.listener.tell(id="c", collapse=what)
        until(lambda: run.progress()["state"] == "held", "the hold")
        until(lambda: run.progress()["state"] == "running", "the hold's end")
        seen = run.progress()["step"]
        until(lambda: run.progress()["step"] > seen + 500, "500 steps without an answer")
        base = next(ref for ref in saved_states(store, StateKind.RING))
        winner = replace(base, key="rollouts/b/c0/end", kind=StateKind.ROLLOUT)
        for info in list(store.list(f"{base.key}/")):
            store.put(winner.key + info.key.removeprefix(base.key), store.get(info.key)[0])
        entry = LineageEntry(
            epoch=1,
            run_uid="u",
            branch="b",
            decision_digest="d",
            action=Action(),
            state=winner,
            base_step=base.step,
            trigger_step=base.step,
        )
        put_document(store, lineage_key(1), entry)
        line.speak(hang_up=True)
        until(lambda: run.progress()["epoch"] == 1, "the new epoch")
        process.terminate()
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def directive(**what):
    return pb.Directive(run_uid="u", id="x", **what)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 1e18, -1.0, 0.0])
def test_a_hold_without_a_sensible_end_is_refused(seconds):
    one = Orders("u")
    one.hear(directive(hold=pb.Hold(branch="b", deadline_seconds=seconds)))
    assert not one.holds(0.0)


def test_a_hold_ends_by_itself_and_soon_after_a_collapse_is_ordered(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(orders, "time", SimpleNamespace(monotonic=lambda: now))
    one = Orders("u")
    one.hear(directive(hold=pb.Hold(branch="b", deadline_seconds=600)))
    assert one.holds(now + 599)
    one.hear(directive(collapse=pb.Collapse(branch="b", epoch=1)))
    assert one.holds(now + orders.COLLAPSE_SECONDS - 0.1)
    assert not one.holds(now + orders.COLLAPSE_SECONDS)
    one.hear(directive(hold=pb.Hold(branch="b", deadline_seconds=600)))
    assert not one.holds(now), "a hold that has ended is not taken up again"


def test_a_reader_never_waits_and_tries_again_what_the_store_refuses():
    answers, asked = threading.Event(), []
    newer = NewerEpoch(entry=None, saved=None)

    def read():
        asked.append(None)
        if len(asked) == 1:
            raise StoreUnavailable("away")
        if len(asked) == 2:
            return None
        answers.wait()
        return newer

    one = NewerEpochReader(read)
    assert until(one.poll) == Newest()
    assert one.poll() is None
    assert one.reading
    answers.set()
    assert until(one.poll) is newer


def test_an_end_of_the_process_does_not_wait_for_a_reader():
    program = """
import threading
from forkcast_trainer.newer_epoch import NewerEpochReader
NewerEpochReader(threading.Event().wait).poll()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
