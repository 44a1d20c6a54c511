"""The conditions of a Branch: one function a condition, one row a function. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from forkcast.decision import Outcome
from forkcast.phases import Collapsing, Finished, Releasing
from forkcast_operator.kubernetes.run_facts import Failure
from forkcast_wire.branches import StoredBranch
from forkcast_wire.resources import BranchCondition, Condition, ConditionStatus, set_condition

_MOST_TEXT: Final = 1024
#: (holds, reason, message)
Said: TypeAlias = tuple[ConditionStatus, str, str]
_YES, _NO, _OPEN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN

_PHASES: Final[Mapping[str, str]] = {
    "Forking": "base states are being chosen and pinned",
    "Drafting": "candidates are being drawn and ranked",
    "Verifying": "rollouts are being measured, rung by rung",
    "Deciding": "all is measured; the decision is being recorded",
    "Collapsing": "the main run adopts the winner",
    "Releasing": "what the branch holds is given back",
}


def conditions(
    branch: StoredBranch,
    trouble: Failure | None,
    before: Sequence[Condition],
    *,
    generation: int,
    now: dt.datetime,
) -> list[Condition]:
    """All conditions of the branch. trouble: why rollouts do not run."""
    made = list(before)
    for kind, row in ROWS.items():
        status, reason, message = row(branch, trouble)
        text = message[:_MOST_TEXT]
        made = set_condition(made, kind, status, reason, text, generation=generation, now=now)
    return made


def _failed_end(branch: StoredBranch) -> bool:
    return branch.finished and branch.outcome in (Outcome.FAILED, Outcome.SUPERSEDED)


def _end(branch: StoredBranch) -> str:
    """Why it ended as it did."""
    phase = branch.phase
    return phase.reason.value if isinstance(phase, Releasing | Finished) else ""


def _ready(branch: StoredBranch, trouble: Failure | None) -> Said:
    phase = type(branch.phase).__name__
    if branch.finished and branch.outcome is not None:
        holds = _NO if _failed_end(branch) else _YES
        return holds, branch.outcome.value, f"the branch has ended: {_end(branch)}"
    if trouble is not None:
        return _NO, trouble.reason, trouble.message
    return _NO, phase, _PHASES.get(phase, "the branch goes on")


def _drafted(branch: StoredBranch, _: Failure | None) -> Said:
    if branch.draft is not None:
        draft = branch.draft
        count = f"{len(draft.candidates)} candidates, {len(draft.finalists)} finalists"
        return _YES, "Ranked", f"{count}, by {draft.source.value}"
    if branch.finished:
        return _NO, "EndedBefore", "the branch ended before its draft"
    return _NO, "NotDrawn", "no candidates have been drawn yet"


def _verified(branch: StoredBranch, trouble: Failure | None) -> Said:
    if branch.decision is not None or isinstance(branch.phase, Collapsing):
        return _YES, "Measured", "the rollouts have been measured and compared"
    if branch.finished:
        return _NO, "NotMeasured", "the branch ended before its rollouts were compared"
    if trouble is not None:
        return _NO, trouble.reason, trouble.message
    if branch.draft is None:
        return _NO, "NoDraft", "there is nothing to verify before the draft"
    return _NO, "Measuring", "rollouts are being measured"


def _accepted(branch: StoredBranch, _: Failure | None) -> Said:
    outcome = branch.outcome
    if outcome is None:
        return _OPEN, "NotDecided", "nothing is decided yet"
    why = branch.decision.reason.value if branch.decision else _end(branch)
    return (_YES if outcome.adopts else _NO), outcome.value, f"decided: {why}"


def _collapsed(branch: StoredBranch, _: Failure | None) -> Said:
    outcome, decision = branch.outcome, branch.decision
    done = isinstance(branch.phase, Releasing | Finished)
    if outcome is None or not (outcome.adopts or done):
        return _NO, "NotYet", "the main run has adopted nothing of this branch"
    if outcome.adopts and decision is not None and not decision.applied:
        return _NO, "DryRun", "mode DryRun: the main run adopts nothing"
    if outcome.adopts and done:
        return _YES, "Adopted", "the main run has adopted the winner, and has saved it"
    if outcome.adopts:
        return _NO, "Adopting", "waits until the main run has adopted the winner and saved it"
    return _NO, "NothingToAdopt", "the branch ended without a winner"


def _complete(branch: StoredBranch, _: Failure | None) -> Said:
    if not branch.finished:
        return _NO, "StillOpen", "the branch is open"
    if _failed_end(branch):
        return _NO, "EndedByFailure", f"the branch failed: {_end(branch)}"
    return _YES, "EndedAsItShould", f"the branch came to its decision: {_end(branch)}"


def _failed(branch: StoredBranch, _: Failure | None) -> Said:
    if _failed_end(branch) and branch.outcome is not None:
        return _YES, f"Ended{branch.outcome.value}", f"no decision was carried out: {_end(branch)}"
    return _NO, "NotFailed", "nothing has gone wrong with the branch as a whole"


def _finished(branch: StoredBranch, _: Failure | None) -> Said:
    if branch.finished:
        return _YES, "Released", "the branch has ended and holds nothing"
    return _NO, "NotReleased", "the branch has not ended"


ROWS: Final[Mapping[BranchCondition, Callable[[StoredBranch, Failure | None], Said]]] = {
    BranchCondition.READY: _ready,
    BranchCondition.DRAFTED: _drafted,
    BranchCondition.VERIFIED: _verified,
    BranchCondition.ACCEPTED: _accepted,
    BranchCondition.COLLAPSED: _collapsed,
    BranchCondition.COMPLETE: _complete,
    BranchCondition.FAILED: _failed,
    BranchCondition.FINISHED: _finished,
}
