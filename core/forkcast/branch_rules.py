"""The rules a branch is opened with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from forkcast.acceptance import AcceptanceRules
from forkcast.allowance import Allowance


class Policy(StrEnum):
    """How a branch chooses. Forkcast: by verified rollouts. Ladder: by a fixed rule, unverified."""

    FORKCAST = "Forkcast"
    LADDER = "Ladder"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRules:
    """The rules a branch is opened with; frozen for its life, whatever the manifest says later.

    rungs: steps after the trigger at which all entrants are compared, rising.
    confirm_steps: the confirm rung, after the last of ``rungs``; 0 for none.
    confirm_finalists: how many go on to it beside the control.
    depths: wanted distances of the base states before the departure, steps; 0 is the newest.
    hold_main: whether the main run waits at t while the branch is open.
    apply: False in mode DryRun.
    allowance: what the branch may cost; None in records of earlier versions, and under policy Ladder,
        whose branch is one rollout.
    """

    rungs: tuple[int, ...] = (10, 25, 50)
    confirm_steps: int = 200
    confirm_finalists: int = 2
    depths: tuple[int, ...] = (0, 200)
    hold_main: bool = True
    apply: bool = True
    policy: Policy = Policy.FORKCAST
    acceptance: AcceptanceRules = field(default_factory=AcceptanceRules)
    allowance: Allowance | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        ladder = (*self.rungs, self.confirm_steps) if self.confirm_steps else self.rungs
        if not self.rungs or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
            raise ValueError(f"branch: rungs must rise from >= 1, confirm last; got {ladder}")

    def within(self, allowance: Allowance | None) -> BranchRules:
        """These rules for a branch that may cost so much: the same rungs, with fewer candidates."""
        if allowance is None:
            return self
        confirmed = allowance.share(self.confirm_finalists)
        return replace(self, allowance=allowance, confirm_finalists=confirmed)

    def recorded(self) -> Mapping[str, str | int | float | bool]:
        """The rules as they stand in decision.json."""
        rules, allowance = self.acceptance, self.allowance
        of = (
            {}
            if allowance is None
            else {
                "candidates": allowance.candidates,
                "topK": allowance.most,
                "grounds": allowance.grounds.value,
            }
        )
        return {
            "policy": self.policy.value,
            "preset": rules.preset.value,
            "maxRiskQuantile": rules.max_risk,
            "maxVolatilityRatio": rules.max_volatility_ratio,
            "unknownMargin": rules.unknown_margin,
            "rungs": ",".join(map(str, self.rungs)),
            "confirmSteps": self.confirm_steps,
            "confirmFinalists": self.confirm_finalists,
            "apply": self.apply,
            **of,
        }
