"""Records of schema 1, written by the version that had it, are read on. The files of schema_1/ were written by that version; they are never rewritten."""

import hashlib
import json
from pathlib import Path

import pytest

from forkcast.branch_rules import BranchRules
from forkcast.conclusion import redecide
from forkcast.decision import Decision, Draft, DraftSource, ProxyAnswer, Reason
from forkcast.phases import Collapsing, Releasing, Verifying
from forkcast_wire.branches import OutcomeRecord
from forkcast_wire.documents import DocumentError, dump, load

FOLDER = Path(__file__).parent / "schema_1"


def stored(name: str) -> bytes:
    return (FOLDER / f"{name}.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "reason", "step"),
    [("data_caused", Reason.EVERY_ROLLOUT_SPIKED, 103), ("accepted", Reason.IMPROVED, None)],
)
def test_a_decision_is_read_and_keeps_its_digest(name: str, reason: Reason, step: int) -> None:
    data = stored(name)
    decision = load(Decision, data)
    assert (decision.schema_version, decision.reason, decision.cause_step) == (1, reason, step)
    assert decision.digest == hashlib.sha256(data).hexdigest()  # the lineage names it by that
    with pytest.raises(ValueError, match="schema 1 lacks its circumstances"):
        redecide(decision, BranchRules())


@pytest.mark.parametrize(
    ("note", "strategy", "answer"),
    [
        ("risk: unavailable; proxy.mode is Heuristic", "Lattice", ProxyAnswer.NOT_ASKED),
        ("risk: unavailable; proxy unavailable: UNAVAILABLE", "Lattice", ProxyAnswer.UNAVAILABLE),
        ("risk: unavailable; proxy invalid: its", "Lattice", ProxyAnswer.INVALID),
        ("risk: unavailable; too far", "Lattice", ProxyAnswer.ABSTAINED),
        ("step 1 of 3", "Ladder", ProxyAnswer.NOT_ASKED),
    ],
)
def test_a_draft_says_how_the_proxy_answered(note: str, strategy: str, answer: ProxyAnswer) -> None:
    document = json.loads(stored("data_caused"))["draft"]
    for one in document["candidates"]:
        one["forecast"] = None
    draft = load(Draft, json.dumps({**document, "note": note, "strategy": strategy}).encode())
    assert (draft.proxy, draft.detail) == (answer, note)
    assert draft.note.count("risk: unavailable") == 1
    assert draft.note.count("proxy unavailable") == note.count("proxy unavailable")


def test_a_draft_with_forecasts_was_answered() -> None:
    document = json.loads(stored("data_caused"))["draft"]
    forecast = {"loss": None, "p_divergence": None, "risk": 0.1, "recovery_steps": None}
    document["candidates"][0]["forecast"] = {**forecast, "candidate": "c000"}
    assert load(Draft, json.dumps(document).encode()).proxy is ProxyAnswer.ANSWERED


def test_a_branch_that_was_open_goes_on() -> None:
    """The phases an older operator may have saved hold its drafts and decisions."""
    decision = json.loads(stored("accepted"))
    case = {"branch": decision["branch"], "trigger": decision["trigger"]}
    collapsing = load(Collapsing, json.dumps({**case, "decision": decision}).encode())
    assert collapsing.decision == load(Decision, stored("accepted"))
    parts = {"bases": decision["bases"], "draft": decision["draft"]}
    verifying = {**case, **parts, "entrants": ["control", "c000"], "rung": 10}
    assert load(Verifying, json.dumps(verifying).encode()).draft == collapsing.decision.draft
    spiked = {**case, "outcome": "DataCaused", "reason": "EveryRolloutSpikedAtStep103"}
    releasing = load(Releasing, json.dumps(spiked).encode())
    assert releasing.reason is Reason.EVERY_ROLLOUT_SPIKED
    ended = {"branch": "b", "outcome": "Superseded", "reason": "epoch 1 is run-e0-t9"}
    assert load(OutcomeRecord, json.dumps(ended).encode()).reason is Reason.EPOCH_TAKEN


def test_what_belongs_to_no_schema_is_refused_by_name() -> None:
    document = json.loads(stored("accepted"))
    with pytest.raises(DocumentError, match="Decision: reason"):
        load(Decision, json.dumps({**document, "reason": "Fancy"}).encode())
    with pytest.raises(DocumentError, match="Decision: surplus"):
        load(Decision, json.dumps({**document, "surplus": 1}).encode())


def test_schema_2_is_written_and_read_unchanged() -> None:
    former = load(Draft, json.dumps(json.loads(stored("accepted"))["draft"]).encode())
    assert former.source is DraftSource.PROXY
    assert load(Draft, dump(former)) == former
