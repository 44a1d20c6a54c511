"""The reporter loses nothing silently and never keeps the training waiting."""

import pytest

from forkcast.records import StepStats
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import reporting
from forkcast_wire.reporting import MOST_IN_FLIGHT, Hello, Reporter
from tests.waiting import until
from tests.wire_integers import cases, name_of, put


def hello(epoch=0, start=0):
    return Hello(
        run_uid="u",
        epoch=epoch,
        attempt=0,
        rank=0,
        start_step=start,
        total_steps=100,
        base_step=0,
    )


def stats(step, epoch=0):
    return StepStats(
        run_uid="u",
        epoch=epoch,
        attempt=0,
        rank=0,
        step=step,
        loss=1.0,
        grad_norm=1.0,
        grad_norm_clipped=1.0,
        learning_rate=1e-3,
        tokens=step,
    )


def steps_of(listener, epoch=0):
    return [key.step for key in sorted(listener.stats) if key.epoch == epoch]


@pytest.fixture
def reporter(monitor):
    one = Reporter(monitor.target, hello())
    yield one
    one.close()


def test_all_steps_arrive_once_and_many_share_a_batch(monitor, reporter):
    monitor.stop()
    for step in range(2000):
        reporter.report(stats(step))
    monitor.start()
    until(lambda: len(monitor.listener.stats) == 2000)
    assert steps_of(monitor.listener) == list(range(2000))
    assert monitor.listener.batches < 100


def test_a_monitor_that_comes_back_gets_the_rest_from_where_it_was(monitor, reporter):
    for step in range(50):
        reporter.report(stats(step))
    until(lambda: len(monitor.listener.stats) == 50 and not reporter._ring)
    monitor.stop()
    for step in range(50, 120):
        reporter.report(stats(step))
    monitor.start()
    until(lambda: len(monitor.listener.stats) == 120)
    assert steps_of(monitor.listener) == list(range(120))
    assert [one.start_step for one in monitor.listener.hellos][0::1][-1] == 50


def test_what_was_not_acknowledged_is_sent_again(monitor, reporter):
    monitor.listener.acknowledge = False
    for step in range(30):
        reporter.report(stats(step))
    until(lambda: monitor.listener.stats)
    monitor.stop()
    monitor.listener.stats.clear()
    monitor.listener.acknowledge = True
    monitor.start()
    until(lambda: len(monitor.listener.stats) == 30)
    until(lambda: not reporter._ring)


def test_no_more_batches_are_in_flight_than_the_credit(monitor, reporter):
    monitor.listener.credit, monitor.listener.acknowledge = 2, False
    until(lambda: monitor.listener.hellos)
    for step in range(3000):
        reporter.report(stats(step))
    until(lambda: monitor.listener.batches >= 2)
    until(lambda: reporter._live is not None and len(reporter._live.in_flight) == 2)
    assert monitor.listener.batches == 2


def test_a_monitor_that_gives_any_credit_and_acknowledges_nothing_gets_so_much_and_no_more(
    monitor, reporter
):
    """What is in flight is bounded by this side, and nobody waits for it."""
    monitor.listener.credit, monitor.listener.acknowledge = (1 << 32) - 1, False
    until(lambda: reporter._live is not None, "the answer to hello")
    for sent in range(1, MOST_IN_FLIGHT + 1):
        reporter.report(stats(sent))
        until(lambda sent=sent: monitor.listener.batches >= sent, "a batch a record")
    for step in range(1000, 1500):
        reporter.report(stats(step))
    with reporter._changed:
        live = reporter._live
        assert live.credit == len(live.in_flight) == MOST_IN_FLIGHT
        assert not reporter._may_go_on(live)
    assert monitor.listener.batches == MOST_IN_FLIGHT


def test_a_monitor_that_tells_directives_without_end_fills_no_memory():
    reporter, stream = Reporter("", hello()), reporting._Stream(hello(), 0)
    for number in range(5):
        told = [pb.Directive(run_uid="u", id=f"{number}-{n}") for n in range(1000)]
        reporter._take(stream, pb.Ack(seq=0, credit=1, directives=told))
        assert len(reporter._inbox) <= reporting.MOST_DIRECTIVES
    assert reporter.directives()[-1].id == "4-999"
    assert reporter.directives() == []


def test_what_the_ring_dropped_is_told_as_one_gap(monitor, monkeypatch):
    monkeypatch.setattr(reporting, "RING_STEPS", 20)
    monitor.stop()
    one = Reporter(monitor.target, hello())
    for step in range(100):
        one.report(stats(step))
    assert one.dropped == 80
    assert one._gaps == [(0, 79)]
    monitor.start()
    until(lambda: len(monitor.listener.stats) == 20)
    assert monitor.listener.gaps == [(0, 79)]
    assert steps_of(monitor.listener) == list(range(80, 100))
    one.close()


def test_a_new_epoch_has_its_own_hello_and_the_old_ones_records_go_first(monitor, reporter):
    for step in range(40):
        reporter.report(stats(step))
    reporter.new_epoch(hello(epoch=1, start=20))
    for step in range(20, 50):
        reporter.report(stats(step, epoch=1))
    until(lambda: len(monitor.listener.stats) == 70)
    assert steps_of(monitor.listener, 1) == list(range(20, 50))
    assert [(one.epoch, one.start_step) for one in monitor.listener.hellos] == [(0, 0), (1, 20)]


def test_directives_arrive_once_each(monitor, reporter):
    monitor.listener.tell(id="a", checkpoint_now={})
    monitor.listener.tell(id="b", hold={"branch": "x", "deadline_seconds": 5})
    reporter.report(stats(0))
    found = []
    until(lambda: found.extend(reporter.directives()) or len(found) == 2)
    assert [one.id for one in found] == ["a", "b"]
    assert reporter.directives() == []


@pytest.mark.parametrize("state", ["dead", "stalled"])
def test_nobody_waits_for_a_monitor_that_does_not_answer(monitor, state):
    if state == "dead":
        monitor.stop()
    monitor.listener.stalled = True
    one = Reporter(monitor.target, hello())
    for step in range(20_000):
        one.report(stats(step))  # a monitor that never answers: waiting for it has no end
    assert one.dropped == 20_000 - reporting.RING_STEPS
    one.close()
    assert not one._thread.is_alive()


def test_gaps_stay_bounded_and_cover_what_was_lost():
    gaps = reporting._joined([(2 * n, 2 * n) for n in range(1000)])
    assert len(gaps) == 256
    covered = {step for low, high in gaps for step in range(low, high + 1)}
    assert set(range(0, 2000, 2)) <= covered


@pytest.mark.parametrize(
    ("path", "value"),
    cases(pb.Ack.DESCRIPTOR),
    ids=lambda one: str(one) if isinstance(one, int) else name_of(one),
)
def test_a_monitor_that_acknowledges_impossible_numbers_costs_what_is_queued_at_most(path, value):
    reporter = Reporter("", hello())
    stream = reporting._Stream(hello(), 0)
    reporter._ring.extend(stats(step) for step in range(20))
    stream.in_flight.append((1, 10, []))
    ack = pb.Ack(seq=1, credit=1, resume_from=0)
    put(ack, path, value)
    reporter._take(stream, ack)
    assert [one.step for one in reporter._ring] in ([], list(range(10, 20)), list(range(20)))
    assert stream.credit >= 1
