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
import pytest

from forkcast import lineage
from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.records import StateKind, StepStats
from forkcast_cli.facts import gather
from forkcast_cli.report import render
from forkcast_trainer import journal, state
from forkcast_trainer.journal import Journal
from forkcast_trainer.rollout import Rollout
from forkcast_trainer.saver import MOST_HELD_BACK, Saver
from forkcast_wire import catalogue, history, keys
from forkcast_wire.documents import (
    HistoryGap,
    RolloutJob,
    RolloutUntil,
    dump,
    history_gaps,
    read_manifest,
    saved_states,
)
from forkcast_wire.statistics import stats_row
from forkcast_wire.store import StoreRefused, StoreUnavailable, open_store, read_document

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import MemoryStore, at_once

from tests.make import lineage_entry, state_ref
from tests.one_step import one_step
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


def refuse(store: MemoryStore, word: str, error: Exception, times: float = math.inf) -> None:
    """The next accesses to a key with this word in it fail."""
    left = times

    def before(access: str, key: str) -> None:
        nonlocal left
        if word in key and left > 0:
            left -= 1
            raise error

    store.before = before


class Saving:
    """A saver, and an engine that steps before each save."""

    def __init__(self, make_engine: Any, folder: Path) -> None:
        self.store, self.engine = MemoryStore(), make_engine()
        self.saver = Saver(self.store, folder, self.engine.spec.checkpoint)

    def save(self, kind: StateKind = StateKind.RING, *, last: bool = False) -> bool:
        """Whether the state of one more step was published."""
        self.saver.record(one_step(self.engine))
        self.saver.save(state.snapshot(self.engine), kind, last=last)
        assert self.saver.flush(60)
        return self.saver.newest_step(0) == self.engine.position.step

    @property
    def steps(self) -> list[int]:
        return [step for _, step in places(self.store)]

    def gap(self) -> HistoryGap | None:
        """Of the newest state."""
        folder = keys.state(StateKind.RING, 0, 0, self.engine.position.step)
        return read_document(self.store, HistoryGap, keys.state_gap(folder))


@pytest.fixture
def saving(make_engine: Any, tmp_path: Path) -> Any:
    one = Saving(make_engine, tmp_path)
    yield one
    assert one.saver.close(60)


def test_no_state_is_published_without_the_rows_before_it(saving: Saving) -> None:
    """A kill after it would lose them for good: whoever resumes from it does not take the steps again."""
    refuse(saving.store, "history/", StoreUnavailable("away"))
    assert not saving.save()
    assert (saving.saver.error, saving.saver.failed()) == ("away", {StateKind.RING})
    assert saved_states(saving.store, StateKind.RING) == []
    saving.store.before = at_once
    assert saving.save()
    assert saving.steps == [0, 1]
    assert (saving.saver.error, saving.saver.gap, saving.gap()) == ("", "", None)


def test_a_history_that_stays_away_alone_stops_no_saving_and_the_state_says_what_it_lacks(
    saving: Saving,
) -> None:
    """A state is worth more than its history: it is held back a few times, not for ever."""
    refuse(saving.store, "history/", StoreUnavailable("its folder is no folder"))
    saved = [saving.save() for _ in range(MOST_HELD_BACK + 2)]
    assert saved == [False] * MOST_HELD_BACK + [True, True]
    steps = MOST_HELD_BACK + 2
    assert saving.gap() == HistoryGap(steps=steps, why="its folder is no folder")
    assert saving.saver.gap == f"{steps} steps are not in the history: its folder is no folder"
    assert saving.saver.error == ""
    assert list(history_gaps(saving.store, StateKind.RING).values()) == [steps - 1, steps]
    saving.store.before = at_once
    assert saving.save()
    assert (saving.saver.gap, saving.gap()) == ("", None)
    assert saving.steps == list(range(steps + 1))
    refuse(saving.store, "history/", StoreUnavailable("away again"))
    assert not saving.save()  # a new outage is waited for anew


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRefused("no rights")])
def test_a_history_that_is_refused_is_not_waited_for_nor_by_a_last_state(
    saving: Saving, error: StoreUnavailable
) -> None:
    refuse(saving.store, "history/", error)
    assert saving.save(last=not isinstance(error, StoreRefused))
    assert saving.gap() == HistoryGap(steps=1, why=str(error))


def test_rows_have_another_chance_before_a_state_is_published_without_them(saving: Saving) -> None:
    refuse(saving.store, "history/", StoreUnavailable("away"), times=1)
    assert saving.save(last=True)
    assert saving.gap() is None
    assert saving.steps == [0]


def test_what_a_state_lacks_is_on_record_before_the_state_and_goes_with_it(saving: Saving) -> None:
    refuse(saving.store, "history-gap", StoreUnavailable("away"))
    saving.saver._journal.dropped = 7
    assert not saving.save()
    assert saved_states(saving.store, StateKind.RING) == []
    saving.store.before = at_once
    assert saving.save()
    assert saving.gap() == HistoryGap(steps=7, why="they came faster than the store took them")
    (ref,) = saved_states(saving.store, StateKind.RING)
    assert all(keys.is_record(key) for key in saving.store.objects)
    catalogue.delete_state(saving.store, ref)
    assert [key for key in saving.store.objects if key.startswith(ref.key)] == []


def test_a_state_that_is_published_at_the_second_try_says_what_is_so_then(saving: Saving) -> None:
    saving.saver.record(one_step(saving.engine))

    def before(access: str, key: str) -> None:
        if "history/" in key or (access, key.endswith("manifest.json")) == ("put", True):
            raise StoreUnavailable("away")

    saving.store.before = before
    for _ in range(2):
        saving.saver.save(state.snapshot(saving.engine), StateKind.RING, last=True)
        assert saving.saver.flush(60)
        saving.store.before = at_once
        assert bool(saving.gap()) is (saving.saver.newest_step(0) is None)
    assert saving.saver.newest_step(0) == 1


def test_a_row_that_fits_no_chunk_stops_no_saving(saving: Saving) -> None:
    saving.saver.record(stats(0, tokens=1 << 70))
    assert saving.save()
    assert saving.gap().steps == 2
    assert saving.save()
    assert saving.steps == [1]


def entry_of(epoch: int, base: int, end: int, folder: str) -> LineageEntry:
    state = state_ref(end, StateKind.ROLLOUT, key=folder, epoch=epoch - 1)
    return lineage_entry(epoch, state=state, base_step=base, trigger_step=base + 4)


def test_the_steps_of_winners_outlast_an_outage_at_their_adoption() -> None:
    """Also of two in a row: the first must not be forgotten for the second."""
    store = MemoryStore()
    written = Journal(store)
    for epoch, (base, end) in enumerate(((5, 13), (9, 17)), start=1):
        folder = keys.rollout_state(f"e{epoch}-t9", "c000", 4)
        rows = [stats_row(stats(n, epoch=epoch - 1)) for n in range(base, end)]
        store.put(keys.state_history(folder), history.encoded(rows))
        written.adopted(entry_of(epoch, base, end, folder), attempt=0)
    written.note(stats(17, epoch=2))
    refuse(store, "rollouts/", StoreUnavailable("away"))
    assert isinstance(written.write(whole=False), StoreUnavailable)
    assert written.missing(2, 18) == 16
    assert places(store) == [(2, 17)]
    store.before = at_once
    assert written.write(whole=False) is None
    assert written.missing(2, 18) == 0
    first = [(1, n) for n in range(5, 13)]
    assert places(store) == [*first, *((2, n) for n in range(9, 18))]


def test_the_steps_of_a_winner_that_are_nowhere_are_missing_and_not_waited_for() -> None:
    written = Journal(MemoryStore())
    written.adopted(entry_of(1, 5, 13, keys.rollout_state("e0-t9", "c000", 4)), attempt=0)
    assert written.write(whole=False) is None
    assert written.missing(1, 13) == 8


def test_a_small_chunk_that_cannot_be_deleted_holds_nothing_back() -> None:
    store = MemoryStore()
    written = Journal(store)
    for step in range(20):
        written.note(stats(step))
        if step == 9:
            written.write(whole=False)

    def before(access: str, key: str) -> None:
        if access == "delete":
            raise StoreUnavailable(f"{access} {key}")

    store.before = before
    assert written.write(whole=True) is None
    assert places(store) == [(0, n) for n in range(20)]


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
