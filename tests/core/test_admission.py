"""Admission: which triggers open a branch, and that none is lost, doubled or let in beside another."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.admission import Budget, Open, Refusal, RunSeen, Suppress, admit
from forkcast.allowance import Allowance, Grounds
from forkcast.records import Trigger, TriggerRule
from tests import make

BUDGET = Budget(
    branches=True,
    max_branches=3,
    max_per_hundred_thousand_steps=10,
    candidates=6,
    total_steps=1000,
)
FIRST = Allowance(candidates=6, most=6, grounds=Grounds.FIRST)
CALM = RunSeen(
    finished=False, epoch=0, opened=frozenset(), active=frozenset(), suppressed=frozenset()
)


def trigger(step: int = 100, epoch: int = 0) -> Trigger:
    return make.trigger(step=step, epoch=epoch, onset_step=step)


def seen(**shown) -> RunSeen:
    return replace(CALM, **{k: frozenset(v) if isinstance(v, set) else v for k, v in shown.items()})


@pytest.mark.parametrize(
    ("shown", "budget", "fits", "verdict"),
    [
        ({}, {}, True, Open(FIRST)),
        ({"opened": {"e0-t100"}}, {}, True, None),
        ({"suppressed": {"e0-t100"}}, {}, True, None),
        ({"opened": {"e0-t50"}, "active": {"e0-t50"}}, {}, True, Suppress(Refusal.BRANCH_ACTIVE)),
        ({"opened": {"e0-t50"}}, {}, True, Open(FIRST)),
        ({}, {"candidates": None}, True, Open(None)),  # the ladder has one rollout
        ({"opened": {"e0-t1", "e0-t2", "e0-t3"}}, {}, True, Suppress(Refusal.BUDGET)),
        ({}, {"max_branches": 0}, True, Suppress(Refusal.BUDGET)),
        ({}, {"max_per_hundred_thousand_steps": 0}, True, Open(FIRST)),  # a run gets at least one
        ({}, {"branches": False}, True, Suppress(Refusal.MODE)),
        ({"finished": True}, {}, True, Suppress(Refusal.RUN_FINISHED)),
        ({"epoch": 1}, {}, True, Suppress(Refusal.STALE_EPOCH)),
        ({}, {}, False, Suppress(Refusal.END_OF_RUN)),
    ],
)
def test_verdict(shown, budget, fits, verdict) -> None:
    assert admit(trigger(), seen(**shown), replace(BUDGET, **budget), fits=fits) == verdict


def test_a_calm_with_nothing_to_pay_back_opens_no_branch() -> None:
    assert admit(trigger(), CALM, BUDGET, fits=True, owed=False) == Suppress(Refusal.NO_LOAN)


def test_the_rate_grows_with_the_run() -> None:
    budget = replace(BUDGET, max_branches=1000, max_per_hundred_thousand_steps=10)
    assert [budget.allowed(s) for s in (0, 100_000, 150_000, 1_000_000)] == [10, 10, 15, 100]


def test_the_last_fifth_of_a_budget_is_kept_for_severe_departures() -> None:
    budget = replace(BUDGET, max_branches=10)
    opened = seen(opened={f"e0-t{step}" for step in range(8)})
    assert admit(trigger(), opened, budget, fits=True) == Suppress(Refusal.RESERVED)
    for asks in (
        replace(trigger(), severe=True),
        replace(trigger(), rule=TriggerRule.NON_FINITE),
        replace(trigger(), rule=TriggerRule.INTERNAL),
        replace(trigger(), rule=TriggerRule.FORCED),
    ):
        assert isinstance(admit(asks, opened, budget, fits=True), Open)
    spent = seen(opened={f"e0-t{step}" for step in range(10)})
    asks = replace(trigger(), severe=True)
    assert admit(asks, spent, budget, fits=True) == Suppress(Refusal.BUDGET)


@pytest.mark.parametrize("most", range(1, 5))
def test_of_a_budget_of_a_few_nothing_is_kept(most) -> None:
    budget = replace(BUDGET, max_branches=most)
    opened = seen(opened={f"e0-t{step}" for step in range(most - 1)})
    assert isinstance(admit(trigger(), opened, budget, fits=True), Open)


def test_a_departure_that_asks_again_and_again_comes_to_an_end_that_is_said() -> None:
    budget = replace(BUDGET, max_branches=30, max_per_hundred_thousand_steps=30)
    tried: list[Trigger] = []
    allowed: list[int] = []
    for step in (100, 300, 700, 1500):
        asks = replace(trigger(step), onset_step=90)
        look = seen(opened={one.id for one in tried}, tried=tuple(tried))
        verdict = admit(asks, look, budget, fits=True)
        if isinstance(verdict, Open):
            assert verdict.allowance is not None
            allowed.append(verdict.allowance.candidates)
            tried.append(asks)
    assert (allowed, verdict) == ([6, 3, 1], Suppress(Refusal.TRIED))


def test_every_refusal_has_words() -> None:
    assert len({one.words for one in Refusal}) == len(Refusal)


class Crash(Exception):
    """The operator died here."""


@dataclass
class SimRun:
    """A run's triggers and branches under an operator that dies before or after any write, and
    sees the whole stream of triggers again each time it connects.
    """

    chaos: random.Random
    crash_rate: float
    budget: Budget = BUDGET
    fired: list[Trigger] = field(default_factory=list)
    opened: dict[str, bool] = field(default_factory=dict)  # id -> whether the branch has ended
    tried: dict[str, Trigger] = field(default_factory=dict)
    suppressed: dict[str, Refusal] = field(default_factory=dict)
    epoch: int = 0
    finished: bool = False
    pending: list[Trigger] = field(default_factory=list)

    def event(self) -> None:
        active = [name for name, ended in self.opened.items() if not ended]
        match self.chaos.choice(["fire", "fire", "work", "work", "connect", "end", "stale"]):
            case "fire" if not self.finished:
                step = (self.fired[-1].step if self.fired else 0) + self.chaos.randint(1, 40_000)
                onset = self.fired[-1].onset_step if self.fired and step % 2 else step
                self._fire(
                    replace(trigger(step, self.epoch), onset_step=onset, severe=step % 7 == 0)
                )
            case "stale" if self.epoch and not self.finished:  # a monitor that is behind
                self._fire(trigger(self.fired[-1].step + 1, self.epoch - 1))
            case "connect":
                self.pending += self.fired
            case "end" if active:
                self.opened[active[0]] = True
                self.epoch += self.chaos.randrange(2)
            case "work":
                self.work()

    def _fire(self, one: Trigger) -> None:
        self.fired.append(one)
        self.pending.append(one)

    def work(self) -> None:
        """As the operator's shell: one look, then a verdict each, durable before the next."""
        look = RunSeen(
            finished=self.finished,
            epoch=self.epoch,
            opened=frozenset(self.opened),
            active=frozenset(name for name, ended in self.opened.items() if not ended),
            suppressed=frozenset(self.suppressed),
            tried=tuple(self.tried.values()),
        )
        try:
            while self.pending:
                one = self.pending[0]
                owed = (
                    one.step % 3 != 0
                )  # as if every third trigger were a calm with nothing to pay
                verdict = admit(one, look, self.budget, fits=one.step < 300_000, owed=owed)
                if verdict is not None:
                    self._may_crash()
                if isinstance(verdict, Open):
                    assert one.id not in self.opened  # I4
                    self.opened[one.id] = False
                    self.tried[one.id] = one
                    opened, active = look.opened | {one.id}, look.active | {one.id}
                    look = replace(look, opened=opened, active=active, tried=(*look.tried, one))
                elif isinstance(verdict, Suppress):
                    assert one.id not in self.suppressed
                    self.suppressed[one.id] = verdict.reason
                    look = replace(look, suppressed=look.suppressed | {one.id})
                if verdict is not None:
                    self._may_crash()
                self.pending.pop(0)
        except Crash:
            self.pending = list(self.fired)

    def _may_crash(self) -> None:
        if self.chaos.random() < self.crash_rate:
            raise Crash


@settings(max_examples=500)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_trigger_has_one_verdict_and_one_branch_at_most_is_active(seed, crash_rate) -> None:
    run = SimRun(random.Random(seed), crash_rate)
    for _ in range(60):
        run.event()
        assert sum(not ended for ended in run.opened.values()) <= 1  # I5
        assert not run.opened.keys() & run.suppressed.keys()
        assert len(run.opened) <= BUDGET.max_branches
    run.finished, run.crash_rate = True, 0.0
    run.pending += run.fired
    run.work()
    assert {one.id for one in run.fired} == run.opened.keys() | run.suppressed.keys()  # I9


def test_the_random_cases_meet_every_reason() -> None:
    met: set[Refusal] = set()
    for seed in range(100):
        few = {"max_branches": 5 + seed % 5, "candidates": 1 + seed % 3}
        run = SimRun(random.Random(seed), 0.1, replace(BUDGET, **few))
        for _ in range(60):
            run.event()
        run.finished = True
        run.work()
        met |= set(run.suppressed.values())
    assert met == set(Refusal) - {Refusal.MODE, Refusal.WATCHED}
