"""A batch is one write, and breaks none of the promises that single records have."""

import json
from dataclasses import replace

import pytest

from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import SNAPSHOT_STEPS, Accepted, WatchedRun
from forkcast_wire.appended import AppendedFile
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import read_history, stats_row

from .conftest import RULES, newest_snapshot, statistics


@pytest.fixture
def open_run(tmp_path):
    def open_(folder="a"):
        given = Registration(
            run_uid="u", name="x", namespace="y", uncertainty=RULES, mode="Enforce", total_steps=0
        )
        place = tmp_path / folder
        run = WatchedRun(given.config(), "u", place / "monitor", History(place / "statistics"))
        run.hello(0, 0, 0, 5000)
        return run

    return open_


def wire(rows):
    return [stats_to_wire(one) for one in rows]


@pytest.fixture
def pieces(monkeypatch):
    """The file and the length of every piece that is appended."""
    seen, original = [], AppendedFile.append

    def append(self, piece):
        original(self, piece)
        seen.append((self._path.name, len(piece)))

    monkeypatch.setattr(AppendedFile, "append", append)
    return seen


def test_a_batch_is_one_write(open_run, pieces):
    run = open_run()
    assert run.accept_all(wire(statistics("u", 30))) == [Accepted.FOLDED] * 30
    assert [name for name, _ in pieces] == ["statistics.tail"]


@pytest.mark.parametrize("size", [1, 7, 64, 1500])
def test_batches_of_any_size_leave_what_single_records_leave(open_run, size):
    rows = statistics("u", 1500, seed=1, spike=700)
    one, other = open_run("one"), open_run("other")
    for row in rows:
        one.accept(row)
    for start in range(0, len(rows), size):
        other.accept_all(wire(rows[start : start + size]))
    assert [t.id for t in other.triggers] == [t.id for t in one.triggers] != []
    assert other.detector.state() == one.detector.state()
    assert repr(read_history(other.history.folder)) == repr(read_history(one.history.folder))
    one.close()
    other.close()
    assert newest_snapshot(other._dir) == newest_snapshot(one._dir)


def test_a_trigger_is_durable_before_the_next_row_is(open_run, pieces, monkeypatch):
    """A restart looks for a lost trigger at the last row alone."""
    run, rows, at_trigger = open_run(), statistics("u", 120, seed=2, spike=80), []
    original = WatchedRun._record

    def record(self, trigger):
        at_trigger.append((trigger.step, read_history(self.history.folder)[-1]["step"]))
        original(self, trigger)

    monkeypatch.setattr(WatchedRun, "_record", record)
    run.accept_all(wire(rows))
    assert at_trigger
    assert all(step == last for step, last in at_trigger)
    assert len(pieces) == 1 + len(at_trigger)


def test_the_row_of_an_event_has_the_onset_of_its_departure(open_run):
    run = open_run()
    run.accept_all(wire(statistics("u", 400, seed=1, spike=300)))
    rows = read_history(run.history.folder)
    told = [row for row in rows if row["event"] is not None]
    onsets = {one.step: one.onset_step for one in run.triggers}
    assert onsets
    assert {row["step"]: row["onset_step"] for row in told}.items() >= onsets.items()
    assert any(row["onset_step"] < row["step"] for row in told)
    assert all(row["onset_step"] is None for row in rows if row["event"] is None)


def test_a_snapshot_is_never_ahead_of_the_history(open_run, monkeypatch):
    run, at_snapshot = open_run(), []
    original = WatchedRun.snapshot

    def snapshot(self):
        at_snapshot.append((self.next_step, read_history(self.history.folder)[-1]["step"] + 1))
        original(self)

    monkeypatch.setattr(WatchedRun, "snapshot", snapshot)
    run.accept_all(wire(statistics("u", 2 * SNAPSHOT_STEPS + 9)))
    assert at_snapshot == [(SNAPSHOT_STEPS,) * 2, (2 * SNAPSHOT_STEPS,) * 2]


def test_a_batch_that_cannot_be_written_is_as_if_it_had_never_come(open_run, monkeypatch):
    rows = statistics("u", 90, seed=3)
    run, calm = open_run(), open_run("calm")
    run.accept_all(wire(rows[:60]))
    calm.accept_all(wire(rows[:60]))

    def full(self, _piece):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AppendedFile, "append", full)
        with pytest.raises(OSError, match="No space"):
            run.accept_all(wire(rows[60:]))
    assert run.next_step == 60
    assert run.last() == calm.last()
    assert run.detector.state() == calm.detector.state()
    assert run.accept_all(wire(rows[60:])) == [Accepted.FOLDED] * 30
    calm.accept_all(wire(rows[60:]))
    assert run.detector.state() == calm.detector.state()


def test_what_comes_before_a_record_that_is_refused_is_taken(open_run):
    run = open_run()
    rows = wire(statistics("u", 10))
    rows[6].tokens = 2**63
    with pytest.raises(ValueError, match="tokens: at most"):
        run.accept_all(rows)
    assert run.next_step == 6
    assert [row["step"] for row in read_history(run.history.folder)] == list(range(6))


def test_a_batch_with_everything_in_it_counts_each_record_once(open_run):
    """Out of order, twice, of another rank, and a late one that what waits has waited for."""
    run, rows = open_run(), statistics("u", 12)
    foreign = replace(rows[3], rank=1)
    order = [rows[0], rows[2], rows[2], foreign, rows[1], rows[0], *rows[3:], rows[11]]
    said = run.accept_all(wire(order))
    assert said.count(Accepted.DUPLICATE) == 4
    assert said[1] is Accepted.WAITING
    assert run.next_step == 12
    assert [row["step"] for row in read_history(run.history.folder)] == list(range(12))
    assert not run.waiting


@pytest.mark.parametrize("former", [False, True], ids=["this version's", "an earlier version's"])
def test_what_waited_when_the_process_died_is_taken_up(open_run, tmp_path, former):
    run, rows = open_run(), statistics("u", 12)
    run.accept_all(wire([*rows[:5], *rows[6:9]]))
    assert run.waiting == 3
    run.sync()
    if former:
        (tmp_path / "a/monitor/waiting.tail").unlink()
        lines = [json.dumps(stats_row(one)) + "\n" for one in rows[6:9]]
        (tmp_path / "a/monitor/waiting.jsonl").write_text("".join(lines))
    again = open_run()
    assert again.waiting == 3
    again.accept_all(wire(rows[5:6]))
    assert (again.next_step, again.waiting) == (9, 0)
    assert open_run().waiting == 0
    assert not (tmp_path / "a/monitor/waiting.jsonl").exists()
