"""The decision of a branch: what was drafted, what was measured, what was concluded and why.

decision.json is the canonical JSON of `Decision`; its name is its digest. It is written once,
create-only, before any effect of it, and never again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from forkcast.actions import Action
from forkcast.canonical import Json, digest, plain
from forkcast.records import Forecast, StateRef, Trial, Trigger

#: 2: `ProxyAnswer`, `Reason` and `Circumstances` instead of sentences; 1 is still read.
SCHEMA_VERSION = 2
CONTROL = "control"


class DraftSource(StrEnum):
    """Who ordered the candidates."""

    PROXY = "Proxy"
    HEURISTIC = "Heuristic"


class ProxyAnswer(StrEnum):
    """How asking the proxy for a draft went."""

    NOT_ASKED = "NotAsked"
    ANSWERED = "Answered"
    ABSTAINED = "Abstained"  # it answered that it has nothing to say about any candidate
    UNAVAILABLE = "Unavailable"  # no answer within the timeout
    INVALID = "Invalid"  # an answer that does not fit the candidates


class Reason(StrEnum):
    """Why a branch ended as it did."""

    IMPROVED = "Improved"
    TRANSIENT_CAUSE = "TransientCause"
    EVERY_ROLLOUT_SPIKED = "EveryRolloutSpiked"
    NO_CANDIDATE_PASSED = "NoCandidatePassed"
    NO_CANDIDATE_PASSED_THE_GATE = "NoCandidatePassedTheGate"
    NO_SAFE_CHECKPOINT = "NoSafeCheckpoint"
    WINNER_STATE_MISSING = "WinnerStateMissing"
    RUN_FINISHED = "RunFinished"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NEXT_STEP_OF_THE_LADDER = "NextStepOfTheLadder"
    LADDER_STEP_FAILED = "LadderStepFailed"
    ENDED_BY_ANOTHER_OPERATOR = "EndedByAnotherOperator"
    EPOCH_TAKEN = "EpochTaken"  # another branch has opened the next epoch

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """Records of schema 1 spelt a step or an epoch into two of the words."""
        if isinstance(value, str) and value.startswith("EveryRolloutSpikedAtStep"):
            return cls("EveryRolloutSpiked")
        if isinstance(value, str) and value.startswith("epoch "):
            return cls("EpochTaken")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One drafted action. ``name`` is ``c000``.. in draft order, or ``control``."""

    name: str
    action: Action
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The drafted candidates and the finalists among them, in ranked order.

    seed: of the search, derived from the branch's identity. source: who ordered. model: digest of
    the model whose forecasts are recorded with the candidates (it may have gated while the heuristic
    ordered), empty if there are none. horizon: steps after the trigger that they forecast; 0 if nothing
    was asked, or in schema 1. proxy: how asking the proxy went. detail: free text beside it,
    for people: what the proxy said, or which error came instead.
    """

    seed: int
    strategy: str
    source: DraftSource
    model: str
    horizon: int
    proxy: ProxyAnswer
    detail: str
    candidates: tuple[Candidate, ...]
    finalists: tuple[str, ...]

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name. Raises KeyError if there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def risk_known(self) -> bool:
        """Whether the model stated a calibrated risk of any candidate."""
        forecasts = [one.forecast for one in self.candidates if one.forecast is not None]
        return any(one.abstained is None and one.risk is not None for one in forecasts)

    @property
    def note(self) -> str:
        """What the forecasts lack and why, in words for people; "" if nothing."""
        answer = _ANSWERS.get(self.proxy, "")
        known = answer in self.detail  # schema 1 kept one text for all
        said = self.detail if known else ": ".join(filter(None, (answer, self.detail)))
        risk = "" if self.risk_known or _NO_RISK in said else _NO_RISK
        return "; ".join(part for part in (risk, said) if part)


_NO_RISK = "risk: unavailable"
_ANSWERS = {
    ProxyAnswer.NOT_ASKED: "the proxy was not asked",
    ProxyAnswer.UNAVAILABLE: "proxy unavailable",
    ProxyAnswer.INVALID: "proxy invalid",
}


class Verdict(StrEnum):
    """What became of one finalist."""

    ACCEPTED = "Accepted"
    PASSED = "Passed"  # met every condition, but another was better
    DROPPED_AT_RUNG = "DroppedAtRung"
    NOT_CONFIRMED = "NotConfirmed"  # not among those that went to the confirm rung
    RISK = "Risk"
    NO_BETTER = "NoBetter"
    VOLATILE = "Volatile"
    DIVERGED = "Diverged"
    FAILED = "Failed"
    UNFINISHED = "Unfinished"  # the deadline came first


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one finalist, with every figure it rests on.

    improvement: control's loss minus the candidate's at ``rung``, nats/token, by the loss that
    the preset compares (mean of recent weights, or raw). margin: what it had to exceed.
    volatility_ratio: the candidate's volatility over the control's.
    risk: the calibrated quantile, or None if it was unavailable (``risk_rule`` says what stood
    in for it).
    """

    candidate: str
    rung: int | None
    verdict: Verdict
    improvement: float | None
    margin: float | None
    volatility_ratio: float | None
    risk: float | None
    risk_rule: str
    reason: str


class Outcome(StrEnum):
    """How a branch ends. The first two adopt a state and open an epoch."""

    ACCEPTED = "Accepted"
    CONTROL_ADOPTED = "ControlAdopted"
    NO_ACTION = "NoAction"
    DATA_CAUSED = "DataCaused"
    FAILED = "Failed"
    SUPERSEDED = "Superseded"

    @property
    def adopts(self) -> bool:
        """Whether the main run continues from a rollout's end state."""
        return self in (Outcome.ACCEPTED, Outcome.CONTROL_ADOPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the branch spent: optimizer steps of all rollouts, replay included, and wall seconds."""

    rollout_steps: int
    rollout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a decision rests on beside the draft and the trials.

    main_loss: the main run's training loss at the trigger, nats/token; None if it is not known or
    not finite (main_diverged). main_over_threshold: whether its index is still over the threshold.
    cut_short: verification did not finish; by the run's own end if run_finished, else by
    the deadline.
    """

    main_loss: float | None
    main_diverged: bool
    main_over_threshold: bool
    cut_short: bool
    run_finished: bool

    @classmethod
    def of(
        cls, main: float | None, *, over_threshold: bool, cut_short: bool, run_finished: bool
    ) -> Self:
        """From the main run's loss at the trigger as it was reported, which may be no number."""
        finite = main is not None and math.isfinite(main)
        return cls(
            main_loss=main if finite else None,
            main_diverged=main is not None and not finite,
            main_over_threshold=over_threshold,
            cut_short=cut_short,
            run_finished=run_finished,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Everything that one decision rests on: with the rules of its branch.json enough to take it
    again (`conclusion.redecide`), from schema 2 on.

    epoch: the lineage epoch in which the trigger fired; an adopted state opens epoch + 1.
    applied: False in mode DryRun, where the outcome is recorded and nothing is changed.
    adopted: the end state that is adopted, None unless ``outcome.adopts``.
    cause_step: the step at which every rollout spiked (`Reason.EVERY_ROLLOUT_SPIKED`), else None.
    rules: the rules in force, by name, as strings and numbers. circumstances: None in schema 1.
    """

    schema_version: int
    run_uid: str
    branch: str
    epoch: int
    trigger: Trigger
    bases: tuple[StateRef, ...]
    draft: Draft
    trials: tuple[Trial, ...]
    judgements: tuple[Judgement, ...]
    outcome: Outcome
    reason: Reason
    cause_step: int | None
    applied: bool
    winner: str | None
    action: Action | None
    adopted: StateRef | None
    rules: Mapping[str, str | int | float | bool]
    cost: Cost
    circumstances: Circumstances | None

    @property
    def digest(self) -> str:
        """sha256, hex, of the canonical JSON: what decision.json hashes to."""
        return digest(self if self.schema_version >= SCHEMA_VERSION else _schema_1(self))


def _schema_1(decision: Decision) -> Json:
    """A decision that was read from schema 1, as it is stored: its digest is in the lineage."""
    document = plain(decision)
    assert isinstance(document, dict)
    del document["circumstances"], document["cause_step"]
    if decision.cause_step is not None:
        document["reason"] = f"EveryRolloutSpikedAtStep{decision.cause_step}"
    draft = document["draft"]
    assert isinstance(draft, dict)
    draft["note"] = draft.pop("detail")
    del draft["proxy"], draft["horizon"]
    return document
