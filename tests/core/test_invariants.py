"""Properties of the branch machine over random worlds, faults and crash points."""

import random
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.branch_rules import BranchRules
from forkcast.decision import Outcome
from forkcast.phases import Finished

sys.path.insert(0, str(Path(__file__).parent))
from simulator import SimWorld, run_to_end, trigger

RULES, TRIGGER = BranchRules(), trigger()
SEEDS = st.integers(0, 2**32)
CASES = settings(max_examples=500)


def world(quality, chaos=0, trigger=TRIGGER, **more):
    return SimWorld(trigger, quality=quality, chaos=random.Random(chaos), **more)


def check(w, end):
    """I1 to I9, as far as one branch can break them."""
    assert not w.violations
    assert isinstance(end, Finished)  # I9
    assert w.decisions_written <= 1  # I7
    assert len({e.epoch for e in w.adopted}) == len(w.adopted)  # I1
    assert [e.epoch for e in w.adopted] == sorted(e.epoch for e in w.adopted)  # I3
    assert len(w.lineage) == (1 if end.outcome.adopts else 0)  # I2
    assert not w.held  # I14
    assert not w.pins
    assert all(one.until is None for one in w.rollouts.values())
    if end.outcome.adopts:
        assert w.durable_epoch == 1  # done only after the new epoch is durable (I8)
        assert w.adopted[-1].decision_digest == w.decision.digest


@CASES
@given(SEEDS, st.integers(1, 60))
def test_a_crash_after_any_command_changes_no_decision(quality, at):
    calm, crashed = world(quality), world(quality, crash_at=at)
    ends = run_to_end(calm, RULES), run_to_end(crashed, RULES)
    check(calm, ends[0])
    check(crashed, ends[1])
    assert ends[0] == ends[1]
    assert calm.decision == crashed.decision


@CASES
@given(SEEDS, SEEDS)
def test_every_branch_ends_whatever_fails(quality, chaos):
    w = world(quality, chaos, crash_rate=0.1, fault_rate=0.2)
    check(w, run_to_end(w, RULES))


@CASES
@given(SEEDS, SEEDS)
def test_two_operators_decide_once_and_collapse_once(quality, chaos):
    w = world(quality, chaos, crash_rate=0.05, fault_rate=0.05)
    check(w, run_to_end(w, RULES, operators=2))


@CASES
@given(SEEDS, SEEDS, st.integers(1, 2))
def test_epochs_rise_one_by_one_over_the_branches_of_a_run(quality, chaos, operators):
    w = world(quality, chaos, crash_rate=0.05, fault_rate=0.1)
    for number in range(3):
        epoch = len(w.lineage)
        w = world(
            quality + number,
            chaos + number,
            crash_rate=0.05,
            fault_rate=0.1,
            trigger=trigger(epoch=epoch),
            lineage=w.lineage,
            adopted=w.adopted,
            posted=epoch,
            trainer_epoch=epoch,
            durable_epoch=epoch,
        )
        end = run_to_end(w, RULES, operators)
        assert not w.violations
        assert len(w.lineage) == epoch + end.outcome.adopts  # I2
    assert [one.epoch for one in w.adopted] == sorted(w.lineage)  # I1, I3
    assert sorted(w.lineage) == list(range(1, len(w.lineage) + 1))


@CASES
@given(SEEDS)
def test_dry_run_changes_nothing(quality):
    w = world(quality)
    end = run_to_end(w, BranchRules(apply=False))
    assert not w.lineage
    assert not w.adopted
    assert isinstance(end, Finished)


def test_both_outcomes_occur():
    outcomes = {run_to_end(world(q), RULES).outcome for q in range(60)}
    assert {Outcome.ACCEPTED, Outcome.NO_ACTION} <= outcomes
