"""The history in the run's store: complete after kills, with the steps of an adopted rollout, and never
in the way of the training.
"""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from forkcast import lineage
from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.records import StateKind, StepStats
from forkcast_cli.facts import gather
from forkcast_cli.report import render
from forkcast_trainer import journal
from forkcast_trainer.journal import Journal
from forkcast_trainer.rollout import Rollout
from forkcast_wire import history, keys
from forkcast_wire.documents import RolloutJob, RolloutUntil, dump, read_manifest, saved_states
from forkcast_wire.store import StoreUnavailable, open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import MemoryStore

from tests.waiting import until


def stats(step: int, epoch: int = 0, attempt: int = 0, **more: Any) -> StepStats:
    values: dict[str, Any] = {
        "run_uid": "u",
        "rank": 0,
        "loss": 1.5,
        "grad_norm": 2.0,
        "grad_norm_clipped": 1.0,
        "learning_rate": 1e-3,
        "tokens": 64 * (step + 1),
    }
    return StepStats(step=step, epoch=epoch, attempt=attempt, **{**values, **more})


def places(store: MemoryStore) -> list[tuple[int, int]]:
    return [(row["epoch"], row["step"]) for row in history.read(store)]


def chunks(store: MemoryStore) -> list[tuple[int, int, int, int]]:
    return [chunk for key in sorted(store.objects) if (chunk := keys.history_of(key)) is not None]


def test_small_chunks_become_one_and_every_row_is_read_once_at_any_time() -> None:
    store = MemoryStore()
    written = Journal(store)
    for step in range(100):
        written.note(stats(step, loss=math.nan if step == 7 else 1.0))
        if step % 10 == 9:
            written.write(whole=step % 50 == 49)
            assert places(store) == [(0, n) for n in range(step + 1)]
    assert chunks(store) == [(0, 0, 0, 49), (0, 0, 50, 99)]
    assert math.isnan(history.read(store)[7]["loss"])


def test_a_death_between_the_large_chunk_and_the_last_small_one_counts_nothing_twice() -> None:
    store = MemoryStore()
    written = Journal(store)
    for step in range(30):
        written.note(stats(step))
        if step % 10 == 9:
            written.write(whole=False)
    kept = dict(store.objects)
    written.write(whole=True)
    store.objects |= kept
    assert len(chunks(store)) == 4
    assert places(store) == [(0, n) for n in range(30)]


def test_epochs_and_attempts_have_chunks_of_their_own_and_the_later_attempt_replaces() -> None:
    store = MemoryStore()
    written = Journal(store)
    for one in [*(stats(n) for n in range(10)), *(stats(n, epoch=1) for n in range(5, 8))]:
        written.note(one)
    written.write(whole=False)
    again = Journal(store)
    for step in range(6, 12):
        again.note(stats(step, epoch=1, attempt=1, loss=3.0))
    again.write(whole=True)
    expected = [*((0, n) for n in range(10)), *((1, n) for n in range(5, 12))]
    assert places(store) == expected
    assert {row["loss"] for row in history.read(store) if row["attempt"] == 1} == {3.0}


def test_a_store_that_is_away_costs_only_what_no_longer_fits(monkeypatch) -> None:
    monkeypatch.setattr(journal, "MOST_ROWS", 64)
    monkeypatch.setattr(journal, "CHUNK_ROWS", 32)
    store, away = MemoryStore(), True

    def before(access: str, key: str) -> None:
        if away:
            raise StoreUnavailable(f"{access} {key}")

    store.before = before
    written = Journal(store)
    for step in range(300):
        written.note(stats(step))
        if step % 10 == 9:
            written.write(whole=False)
    held = len(written._rows) + len(written._next) + len(written._waiting)
    assert held <= 3 * 64
    assert written.dropped == 300 - held
    away = False
    for _ in range(3):
        written.write(whole=True)
    read = [step for _, step in places(store)]
    assert len(read) == held
    assert read[-1] == 299
    assert read == sorted(set(read))


def test_every_chunk_is_a_record_that_an_erasure_knows() -> None:
    assert keys.is_record(keys.history(3, 2, 0, 1023))
    assert keys.is_record(keys.state_history("rollouts/e0-t100/c000/end-000200"))
    assert not keys.is_record("history/other.parquet")


def test_a_run_that_is_killed_again_and_again_has_every_step_once(new_run, monkeypatch) -> None:
    """Without a monitor: what the states resume from, the history has, too."""
    run = new_run(steps=60, every=30, ring=5)
    monkeypatch.setenv("FORKCAST_PACE", "trainer/step:0.02")
    for attempt, step in enumerate((13, 27, 44)):
        trainer = run.start(attempt=attempt)
        until(lambda step=step: run.progress().get("step", 0) >= step)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    monkeypatch.delenv("FORKCAST_PACE")
    assert run.start(attempt=3).wait() == 0
    store = open_store(run.manifest.spec.storage, run.folder)
    assert [row["step"] for row in history.read(store)] == list(range(60))
    assert pq.read_table(run.folder / "history").num_rows >= 60
    facts = gather(run.folder)  # a run that nobody watched has a report all the same
    assert [point.step for point in facts.points] == list(range(60))
    assert "Loss" in (page := render(facts))
    assert "Parts of the index" not in page


def test_the_steps_of_an_adopted_rollout_are_the_first_of_its_epoch(new_run, run_in) -> None:
    run = new_run(steps=30, every=30, ring=10)
    assert run.start().wait() == 0
    spec = run.manifest.spec
    store = open_store(spec.storage, run.folder)
    base = saved_states(store, StateKind.RING)[-1]  # which of them were saved hangs on the pace
    job = RolloutJob(
        run_uid="u",
        trigger_id="e0-t25",
        candidate="c000",
        action=Action(learning_rate_scale=0.5, rewind_steps=5),
        base=base,
        trigger_step=base.step + 5,
        rungs=(10,),
        publish_from=10,
    )
    store.put(keys.rollout_until("e0-t25", "c000"), dump(RolloutUntil(until=10)))
    rollout = Rollout(job, spec, store, run.folder, park_seconds=0)
    rollout.run()
    folder = keys.rollout_state("e0-t25", "c000", 10)
    end = read_manifest(store, folder).state
    entry = LineageEntry(
        epoch=1,
        run_uid="u",
        branch="t-e0-t25",
        decision_digest="d",
        action=job.action,
        state=end,
        base_step=base.step,
        trigger_step=base.step + 5,
    )
    store.put(lineage.key(1), dump(entry), create=True)
    longer = run_in(run.folder, steps=60, every=30, ring=10)
    assert longer.start(attempt=1).wait() == 0
    places = [(row["epoch"], row["step"]) for row in history.read(store)]
    assert places == [*((0, n) for n in range(30)), *((1, n) for n in range(base.step, 60))]
