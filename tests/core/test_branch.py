"""Single moves of the branch machine that the random cases meet too rarely."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkcast.actions import Action
from forkcast.branch import branch_name, decide
from forkcast.branch_rules import BranchRules
from forkcast.commands import PostCollapse
from forkcast.conclusion import entry_of
from forkcast.decision import (
    Circumstances,
    Cost,
    Decision,
    Draft,
    DraftSource,
    Outcome,
    ProxyAnswer,
    Reason,
)
from forkcast.phases import MOVES, Collapsing, Finished, Forking, Releasing
from forkcast.records import StateKind
from forkcast.seen import Seen
from tests.make import state_ref, trigger

TRIGGER = trigger()
BASE = state_ref(75)
NAME = branch_name("run", TRIGGER)
FORKING = Forking(branch=NAME, trigger=TRIGGER)
DECISION = Decision(
    schema_version=2,
    run_uid="u",
    branch=NAME,
    epoch=0,
    trigger=TRIGGER,
    bases=(BASE,),
    draft=Draft(
        seed=1,
        strategy="Lattice",
        source=DraftSource.HEURISTIC,
        model="",
        horizon=0,
        proxy=ProxyAnswer.NOT_ASKED,
        detail="",
        candidates=(),
        finalists=(),
    ),
    trials=(),
    judgements=(),
    outcome=Outcome.ACCEPTED,
    reason=Reason.IMPROVED,
    cause_step=None,
    applied=True,
    winner="c000",
    action=Action(clipping="ZClip", rewind_steps=25),
    adopted=replace(BASE, kind=StateKind.ROLLOUT, step=150),
    rules={},
    cost=Cost(rollout_steps=1, rollout_seconds=1.0),
    circumstances=Circumstances.of(None, over_threshold=False, cut_short=False, run_finished=False),
)
NOTHING = Seen(
    bases=None,
    draft=None,
    rollouts={},
    main_losses={},
    main_over_threshold=False,
    decision=None,
    lineage=None,
    durable_epoch=0,
    expired=False,
    run_finished=False,
    released=False,
)
COLLAPSING = Collapsing(branch=NAME, trigger=TRIGGER, decision=DECISION)
ENTRY = entry_of(DECISION)
MOVES_TABLE = [
    ("no state before the departure", FORKING, {"bases": ()}, Releasing, Outcome.FAILED),
    ("the run has ended", FORKING, {"run_finished": True}, Releasing, Outcome.NO_ACTION),
    ("too late", FORKING, {"expired": True}, Releasing, Outcome.FAILED),
    ("decided by another", FORKING, {"decision": DECISION}, Collapsing, None),
    ("ended by another", FORKING, {"released": True}, Releasing, Outcome.SUPERSEDED),
    ("not yet durable", COLLAPSING, {"lineage": ENTRY}, Collapsing, None),
    (
        "the run ended before anyone adopted",
        COLLAPSING,
        {"lineage": ENTRY, "run_finished": True},
        Releasing,
        Outcome.NO_ACTION,
    ),
    (
        "durable at the run's end",
        COLLAPSING,
        {"lineage": ENTRY, "durable_epoch": 1, "run_finished": True},
        Releasing,
        Outcome.ACCEPTED,
    ),
    (
        "the epoch is another's",
        COLLAPSING,
        {"lineage": replace(ENTRY, branch="other")},
        Releasing,
        Outcome.SUPERSEDED,
    ),
]


@pytest.mark.parametrize("row", MOVES_TABLE, ids=lambda row: row[0])
def test_move(row) -> None:
    _, phase, shown, kind, outcome = row
    following, _ = decide(phase, replace(NOTHING, **shown), BranchRules())
    assert type(following) is kind
    assert kind is type(phase) or kind in MOVES[type(phase)]
    assert outcome is None or following.outcome is outcome


def test_a_collapse_is_posted_until_it_shows() -> None:
    seen = replace(NOTHING, lineage=ENTRY)
    for _ in range(3):
        phase, commands = decide(COLLAPSING, seen, BranchRules())
        assert phase == COLLAPSING
        assert commands == (PostCollapse(branch=NAME, entry=ENTRY),)


def test_a_finished_branch_asks_for_nothing() -> None:
    done = Finished(
        branch=NAME, trigger=TRIGGER, outcome=Outcome.NO_ACTION, reason=Reason.RUN_FINISHED
    )
    assert decide(done, NOTHING, BranchRules()) == (done, ())


@pytest.mark.parametrize(
    "ladder", [((), 0), ((10, 10), 0), ((25, 10), 0), ((10, 50), 50), ((0,), 0)]
)
def test_rungs_rise_and_the_confirm_rung_is_last(ladder) -> None:
    with pytest.raises(ValueError, match="rungs must rise"):
        BranchRules(rungs=ladder[0], confirm_steps=ladder[1])


def test_an_entry_of_a_decision_that_adopts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="adopts nothing"):
        entry_of(replace(DECISION, adopted=None))
