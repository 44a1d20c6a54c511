"""How a draft's question to the proxy went, as the Branch's events, status and counters report it."""

from __future__ import annotations

import datetime as dt

import pytest

from forkcast.branch_rules import BranchRules
from forkcast.decision import Draft, DraftSource, ProxyAnswer
from forkcast.phases import Drafting
from forkcast_operator.kubernetes import metrics
from forkcast_operator.kubernetes.branch_status import branch_status
from forkcast_operator.kubernetes.events import branch_events
from forkcast_operator.kubernetes.rollout_state import rollout_stands
from forkcast_wire.branches import BranchRecord, StoredBranch
from forkcast_wire.resources import BranchStatus
from tests.make import trigger

NOW = dt.datetime(2026, 11, 27, tzinfo=dt.UTC)
TRIGGER = trigger()


def facts(answer: ProxyAnswer, detail: str) -> StoredBranch:
    draft = Draft(
        seed=1,
        strategy="Lattice",
        source=DraftSource.HEURISTIC,
        model="",
        horizon=0,
        proxy=answer,
        detail=detail,
        candidates=(),
        finalists=(),
    )
    record = BranchRecord(name="run-e0-t100", trigger=TRIGGER, rules=BranchRules(), opened_at=0.0)
    phase = Drafting(branch=record.name, trigger=TRIGGER, bases=())
    return StoredBranch(
        record=record, phase=phase, bases=(), draft=draft, decision=None, rollouts={}
    )


@pytest.mark.parametrize(
    ("answer", "detail", "warnings"),
    [
        (ProxyAnswer.NOT_ASKED, "", []),
        (ProxyAnswer.ANSWERED, "withheld at +200", []),
        (ProxyAnswer.ABSTAINED, "proxy of another world", []),  # words decide nothing
        (ProxyAnswer.UNAVAILABLE, "DEADLINE_EXCEEDED", ["ProxyUnavailable"]),
        (ProxyAnswer.INVALID, "its forecasts do not match the candidates", ["ProxyInvalid"]),
    ],
)
def test_an_answer_that_is_missing_or_wrong_is_a_warning(
    answer: ProxyAnswer, detail: str, warnings: list[str]
) -> None:
    seen = facts(answer, detail)
    stands = {"control": rollout_stands(None, None, [], NOW)}
    after = branch_status(seen, [], stands, BranchStatus(), generation=1, now=NOW)
    events = branch_events(seen, BranchStatus(), after)
    assert [one.reason for one in events if one.warning] == warnings
    assert all(detail in one.note for one in events if one.warning)
    assert after.draft is not None
    assert after.draft.proxy is answer
    assert detail in after.draft.note
    assert branch_events(seen, after, after) == []


def test_every_question_that_was_asked_is_counted_under_a_label_of_the_alert() -> None:
    assert set(metrics.PROXY_RESULTS) == set(ProxyAnswer) - {ProxyAnswer.NOT_ASKED}
    assert set(metrics.PROXY_RESULTS.values()) == {"ok", "abstained", "unavailable"}
