"""A store that does not answer: its circuit breaker as values, and its threads with real waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from forkcast_operator.kubernetes import passes, store_pool
from forkcast_operator.kubernetes.passes import Passes
from forkcast_operator.kubernetes.store_pool import Breaker, StorePool
from forkcast_wire.manifest import Storage
from forkcast_wire.store import PassTooLong, StoreUnavailable
from tests.waiting import HANG_SECONDS

KEY, UID = ("ml", "gpt"), "u"
STORAGE = Storage(endpoint="https://s3.example", bucket="runs")
OTHER = Storage(endpoint="https://s3.example", bucket="others")


def test_a_costly_failure_opens_the_circuit_and_an_answer_closes_it() -> None:
    breaker = Breaker()
    assert breaker.admits(0.0)
    assert breaker.failed(10.0, "no answer", costly=True)
    assert not breaker.admits(10.1)
    assert breaker.admits(15.1)  # a trial
    assert not breaker.admits(15.2)
    assert not breaker.failed(25.0, "another reason", costly=True)
    assert breaker.why == "no answer"
    assert breaker.admits(26.0)
    assert breaker.answered(27.0) == 17.0
    assert breaker.admits(27.0)
    assert breaker.answered(28.0) is None


def test_cheap_failures_are_an_outage_but_refuse_nobody() -> None:
    breaker = Breaker()
    assert not breaker.failed(1.0, "refused", costly=False)
    assert breaker.failed(2.0, "refused", costly=False)
    assert not breaker.failed(3.0, "refused", costly=False)
    assert breaker.admits(3.0)
    assert breaker.answered(4.0) == 2.0


class Silent:
    """Calls that come back when they are told to."""

    def __init__(self) -> None:
        self.answer, self.begun, self.asked = threading.Event(), threading.Event(), 0

    def __call__(self):
        self.asked += 1
        self.begun.set()
        assert self.answer.wait(HANG_SECONDS)
        return "answered"


def test_a_silent_store_costs_a_look_its_patience_once_and_others_nothing(monkeypatch) -> None:
    monkeypatch.setattr(passes, "OVERDUE_SECONDS", 0.0)  # whatever is not back is overdue
    monkeypatch.setattr(store_pool, "_TRIAL_SECONDS", HANG_SECONDS)
    silent = Silent()

    async def scene():
        woken = asyncio.Event()
        looks = Passes(lambda _: woken.set(), patience=0.05)
        with pytest.raises(StoreUnavailable, match="no answer"):
            await looks.look(KEY, UID, STORAGE, silent)
        assert looks.busy(UID)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="no answer"):
                await looks.look(KEY, UID, STORAGE, silent)
        assert silent.asked == 1  # it is still under way
        for number in range(20):  # other runs on the same store are refused, and cost no thread
            with pytest.raises(StoreUnavailable, match="no answer"):
                await looks.look(KEY, f"other{number}", STORAGE, silent)
        assert silent.asked == 1
        looks._patience = HANG_SECONDS
        assert await looks.look(KEY, "healthy", OTHER, lambda: "at once") == "at once"
        silent.answer.set()
        await woken.wait()
        assert not looks.busy(UID)
        assert await looks.look(KEY, UID, STORAGE, silent) == "answered"
        assert await looks.look(KEY, "other1", STORAGE, lambda: "again") == "again"

    asyncio.run(scene())


def test_a_pass_that_comes_late_is_used_by_the_next_look() -> None:
    slow = Silent()

    async def scene():
        woken = asyncio.Event()
        looks = Passes(lambda _: woken.set(), patience=0.01)
        assert await looks.look(KEY, UID, STORAGE, slow) is None
        assert await looks.look(KEY, UID, STORAGE, slow) is None
        slow.answer.set()
        await woken.wait()
        assert await looks.look(KEY, UID, STORAGE, slow) == "answered"
        assert slow.asked == 1

    asyncio.run(scene())


def test_what_the_store_says_is_an_answer() -> None:
    def missing():
        raise LookupError("no such key")

    def away():
        raise StoreUnavailable("refused", why="refused")

    async def scene():
        pool = StorePool("s")
        for call, error in ((away, StoreUnavailable), (away, StoreUnavailable)):
            with pytest.raises(error):
                await pool.submit("ml", call).future
        assert pool.slow
        with pytest.raises(LookupError):
            await pool.submit("ml", missing).future
        assert not pool.slow

    asyncio.run(scene())


def test_a_namespace_has_two_threads_of_a_store_whatever_it_asks() -> None:
    """Regression: four long passes of one tenant kept everybody else's from the store."""
    silent = Silent()

    async def scene():
        pool = StorePool("s")
        greedy = [pool.submit("greedy", silent) for _ in range(50)]
        assert await pool.submit("modest", lambda: "served").future == "served"
        assert await pool.submit("another", lambda: "served").future == "served"
        assert silent.asked <= 2
        assert [work.started for work in greedy[2:]] == [None] * 48
        silent.answer.set()
        assert await asyncio.gather(*(work.future for work in greedy)) == ["answered"] * 50

    asyncio.run(scene())


def test_a_pass_that_waits_for_a_thread_is_not_overdue(monkeypatch) -> None:
    monkeypatch.setattr(passes, "OVERDUE_SECONDS", HANG_SECONDS)
    silent = Silent()

    async def scene():
        looks = Passes(lambda _: None, patience=0.01)
        for number in range(3):
            assert await looks.look(KEY, f"u{number}", STORAGE, silent) is None
        monkeypatch.setattr(passes, "OVERDUE_SECONDS", 0.0)
        assert await looks.look(KEY, "u2", STORAGE, silent) is None  # still in the queue
        assert not looks.pools.of(STORAGE).refuses
        silent.answer.set()
        await looks._pending["u2"].future
        assert await looks.look(KEY, "u2", STORAGE, silent) == "answered"

    asyncio.run(scene())


def test_a_pass_that_hangs_while_others_are_answered_costs_nobody_else_the_store() -> None:
    silent = Silent()

    async def scene():
        pool = StorePool("s", clock=iter(range(100)).__next__)
        hanging = pool.submit("greedy", silent)
        assert silent.begun.wait(HANG_SECONDS)
        assert await pool.submit("modest", lambda: "served").future == "served"
        pool.overdue(hanging)
        assert not pool.refuses
        silent.answer.set()
        await hanging.future
        last = Silent()
        alone = pool.submit("greedy", last)
        assert last.begun.wait(HANG_SECONDS)
        pool.overdue(alone)
        assert pool.refuses
        last.answer.set()
        await alone.future

    asyncio.run(scene())


def test_a_pass_that_asks_for_too_much_is_no_outage() -> None:
    def endless():
        raise PassTooLong("a pass over the run's records takes more than 12 s")

    async def scene():
        pool = StorePool("s", clock=iter(range(0, 9000, 13)).__next__)  # each call lasts 13 s
        for _ in range(3):
            with pytest.raises(PassTooLong):
                await pool.submit("greedy", endless).future
            assert not pool.refuses
            assert await pool.submit("modest", lambda: "served").future == "served"

    asyncio.run(scene())
