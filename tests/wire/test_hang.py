"""Which ranks hold up a run: by their beats, and by nothing that a slow machine could do."""

import os
import threading
from types import SimpleNamespace

import pytest

from forkcast_wire import beats, hang
from forkcast_wire.beats import Beat, Phase
from forkcast_wire.hang import Sighting
from forkcast_wire.last_words import Ended
from forkcast_wire.store import StoreUnavailable, deadline, limits, wait_for

LIMIT = 60.0
WAITS = (Phase.STORE, Phase.MEET)
SLOW = (Phase.START, Phase.FIRST_STEP, Phase.END)


def beat(rank=0, phase=Phase.STEP, count=1, limit=LIMIT):
    return Beat(rank=rank, pid=100 + rank, phase=phase, step=7, count=count, limit=limit)


def ranks(*sightings):
    return [one.beat.rank for one in hang.hung({one.beat.rank: one for one in sightings})]


def looks(sequence, stopped=(), elapsed=1.0):
    """The sightings after a look at each of these lists of beats."""
    found = {}
    for one in sequence:
        found = hang.seen(found, one, stopped, elapsed)
    return found


@pytest.fixture
def pulse(tmp_path, monkeypatch):
    monkeypatch.setenv(beats.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(beats, "_pulse", None)
    return beats.start(3, LIMIT)


def test_a_rank_without_a_beat_for_the_limit_has_hung():
    assert ranks(Sighting(beat(), LIMIT, stopped=False)) == []
    assert ranks(Sighting(beat(), LIMIT + 1, stopped=False)) == [0]


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_has_its_patience(phase):
    after = {
        times: ranks(Sighting(beat(phase=phase), times * LIMIT + 1, stopped=False))
        for times in (1, 6, 10_000)
    }
    if phase in WAITS:
        assert after == {1: [], 6: [], 10_000: []}
    elif phase in SLOW:
        assert after == {1: [], 6: [0], 10_000: [0]}
    else:
        assert after == {1: [0], 6: [0], 10_000: [0]}


def test_a_stopped_process_has_hung_in_every_phase():
    for phase in Phase:
        assert ranks(Sighting(beat(phase=phase), LIMIT + 1, stopped=True)) == [0], phase


def test_the_stopped_rank_is_named_and_not_those_that_wait_for_it():
    waits = Sighting(beat(0), LIMIT + 2, stopped=False)
    assert ranks(waits, Sighting(beat(1), LIMIT + 1, stopped=True)) == [1]
    # the rank that waits was still first
    assert ranks(waits, Sighting(beat(1), LIMIT - 1, stopped=True)) == [1]


def test_a_rank_that_is_stuck_is_named_and_not_those_that_meet_it():
    waits = Sighting(beat(0, Phase.MEET), LIMIT + 2, stopped=False)
    assert ranks(waits, Sighting(beat(1), LIMIT + 1, stopped=False)) == [1]


def test_a_process_stopped_for_a_moment_has_not_hung():
    assert ranks(Sighting(beat(), LIMIT / 2, stopped=True)) == []


def test_no_limit_no_alarm():
    assert ranks(Sighting(beat(limit=0), 1e9, stopped=True)) == []


@pytest.mark.parametrize("phase", [Phase.HOLD, Phase.EVALUATE, Phase.STEP])
def test_what_beats_never_hangs_however_long_it_takes(phase):
    sequence = [[beat(phase=phase, count=number // 50)] for number in range(10_000)]
    found = {}
    for one in sequence:
        found = hang.seen(found, one, (), 1.0)
        assert hang.hung(found) == []


def test_still_time_adds_up_and_a_beat_begins_it_anew():
    assert looks([[beat()]] * 4)[0].still == 3.0
    assert looks([[beat()]] * 4 + [[beat(count=2)]])[0].still == 0.0


def test_a_machine_that_was_asleep_has_hung_nobody():
    assert hang.hung(looks([[beat()]] * 3, stopped=[100], elapsed=1e6)) == []


def test_a_rank_started_again_is_not_blamed_for_the_former_process():
    former = hang.seen({0: Sighting(beat(), LIMIT, stopped=False)}, [], (), 1.0)
    assert former == {}
    again = Beat(rank=0, pid=7, phase=Phase.STEP, step=7, count=1, limit=LIMIT)
    assert looks([[beat()], [beat()], [again]])[0].still == 0.0


def test_the_watcher_reads_what_the_training_thread_says(pulse, tmp_path):
    beats.beat(Phase.STEP, 12)
    with beats.during(Phase.EVALUATE):
        (seen,) = beats.read(tmp_path)
        assert (seen.rank, seen.pid, seen.step) == (3, os.getpid(), 12)
        assert (seen.phase, seen.limit) == (Phase.EVALUATE, LIMIT)
    (after,) = beats.read(tmp_path)
    assert after.phase is Phase.STEP
    assert after.count > seen.count
    assert after == pulse.seen()


def test_a_helper_thread_cannot_beat_for_the_training_thread(pulse):
    def helper():
        beats.beat(Phase.HOLD, 99)
        with beats.during(Phase.STORE):
            pass

    before = pulse.seen()
    thread = threading.Thread(target=helper)
    thread.start()
    thread.join()
    assert pulse.seen() == before


def test_waiting_for_a_store_that_is_away_is_no_hang(pulse):
    found = []

    def call():
        found.append(pulse.seen())
        if len(found) == 1:
            raise StoreUnavailable("away")

    wait_for(call, threading.Event(), tell=lambda _: None)
    assert [one.phase for one in found] == [Phase.STORE] * 2
    assert found[0].count < found[1].count < pulse.seen().count


def test_a_file_of_a_process_that_is_not_watched_means_nothing(pulse, tmp_path):
    (tmp_path / "rank-9").write_bytes(b"no beat")
    watch = hang.Watch(tmp_path)
    assert [one.rank for one in beats.read(tmp_path)] == [3]
    assert watch.look([]) == watch.look([os.getpid()]) == []


def test_a_rank_that_is_being_ended_is_not_named_again(tmp_path, monkeypatch):
    monkeypatch.setenv(beats.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(beats, "_pulse", None)
    beats.start(0, 7.0)
    beats.beat(Phase.STEP)
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr(hang, "time", SimpleNamespace(monotonic=lambda: next(now)))
    watch = hang.Watch(tmp_path)
    named = [len(watch.look([os.getpid()])) for _ in range(5)]
    assert named == [0, 0, 1, 0, 0]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(beats, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_no_limit_is_shorter_than_three_of_the_longest_steps_taken(clock, pulse):
    for seconds in (10.0, 30.0, 100.0, 20.0):
        beats.beat(Phase.STEP)
        clock[0] += seconds
    beats.beat(Phase.STEP)
    assert (beats.limit(), pulse.seen().limit) == (300.0, 300.0)
    found = {0: Sighting(pulse.seen(), 299.0, stopped=False)}
    assert hang.hung(found) == []


@pytest.mark.parametrize("phase", [Phase.HOLD, Phase.EVALUATE, Phase.STORE, Phase.MEET, Phase.END])
def test_what_is_no_step_makes_no_limit_longer(clock, pulse, phase):
    beats.beat(Phase.STEP)
    with beats.during(phase):
        clock[0] += 1e6
    beats.beat(Phase.STEP)
    assert beats.limit() == LIMIT


def test_no_limit_stays_none(clock, tmp_path):
    unwatched = beats.Pulse(0, 0.0, None)
    unwatched.beat(Phase.STEP)
    clock[0] += 1e6
    unwatched.beat(Phase.STEP)
    assert unwatched.limit == 0


def test_hangs_count_in_a_row_only_while_the_run_comes_no_further():
    count, step = 0, -1
    for at, reason, expected in (
        (7, Ended.HUNG, 1),
        (7, Ended.HUNG, 2),
        (9, Ended.HUNG, 1),
        (8, Ended.HUNG, 2),
        (8, Ended.NO_USABLE_STATE, 0),
        (8, Ended.HUNG, 1),
    ):
        count, step = hang.in_a_row(count, step, at, reason), at
        assert count == expected, (at, reason)


def test_the_words_about_a_hang_name_the_field_unless_the_process_was_stopped():
    assert "spec.training.hangSeconds (in force: 60 s)" in hang.words(
        [Sighting(beat(), 61.0, stopped=False)]
    )
    assert "hangSeconds" not in hang.words([Sighting(beat(), 61.0, stopped=True)])


def test_a_call_that_never_returns_is_left_once_it_is_time_to_stop():
    answers, stop = threading.Event(), threading.Event()

    def call():
        stop.set()
        answers.wait()

    with pytest.raises(StoreUnavailable, match="stopped before the store answered"):
        wait_for(call, stop)
    answers.set()


def test_a_call_in_a_thread_keeps_its_errors_and_its_callers_deadline():
    def call():
        raise KeyError(limits.left() < 100)

    with deadline(99), pytest.raises(KeyError, match="True"):
        wait_for(call, threading.Event())
