"""The decision of a branch: what was drafted, what was measured, what was concluded and why.

decision.json is the canonical JSON of `Decision`; its name is its digest. It is written once,
create-only, before any effect of it, and never again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from forkcast.actions import Action
from forkcast.canonical import digest
from forkcast.records import Forecast, StateRef, Trial, Trigger

SCHEMA_VERSION = 1
CONTROL = "control"


class DraftSource(StrEnum):
    """Who ordered the candidates."""

    PROXY = "Proxy"
    HEURISTIC = "Heuristic"


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
    the model whose forecasts stand with the candidates (it may have gated where the heuristic
    ordered), empty where there are none. note: what was unavailable, and why.
    """

    seed: int
    strategy: str
    source: DraftSource
    model: str
    note: str
    candidates: tuple[Candidate, ...]
    finalists: tuple[str, ...]

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name. Raises KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


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
    risk: the calibrated quantile, or None where it was unavailable (``risk_rule`` says what stood
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
class Decision:
    """Everything that one decision rests on; enough to take it again.

    epoch: the lineage epoch in which the trigger fired; an adopted state opens epoch + 1.
    applied: False in mode DryRun, where the outcome is recorded and nothing is changed.
    adopted: the end state that is adopted, None unless ``outcome.adopts``.
    rules: the rules in force, by name, as strings and numbers.
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
    reason: str
    applied: bool
    winner: str | None
    action: Action | None
    adopted: StateRef | None
    rules: Mapping[str, str | int | float | bool]
    cost: Cost

    @property
    def digest(self) -> str:
        """sha256, hex, of the canonical JSON: what decision.json hashes to."""
        return digest(self)
