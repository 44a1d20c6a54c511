"""What a manifest says about the detector, the branches it opens, and who forecasts for them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from forkcast_wire.fields import (
    MOST_EPOCHS,
    Decay,
    Decimal,
    Fraction,
    NonNegative,
    Part,
    Positive,
    Rule,
    Steps,
    StepsOrZero,
)
from forkcast_wire.shelves import ClippingChoice, PresetName, SearchName, Shares, SignalName


class TriggerThresholds(Part):
    """When the index makes an event. Its unit: about one healthy step in 100,000 reaches 3.2."""

    z: Positive | None = None
    """Threshold that must be exceeded at `consecutiveSteps` steps in a row; 2.5 if absent."""
    consecutive_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    """How many steps in a row; 3 if absent."""
    single_z: Positive | None = None
    """Threshold that makes an event at once; 3.2 if absent."""
    force_every_steps: StepsOrZero = 0
    """A trigger every so many steps whatever the index says (0 = off); for tests and evaluations."""


class Uncertainty(Part):
    """The detector. Each absent field keeps its default."""

    preset: PresetName | None = None
    """The detector: Forkcast, its first rule (Literal), or another project's; Forkcast if absent."""
    window: Annotated[int, Field(ge=16, le=65536, strict=True)] | None = None
    """Rows that the proxy sees, that preset Literal takes its spreads over, and in which the drift
    signal forgets what was best by a quarter of the loss's scale; 512 if absent."""
    ema_decay: Decay | None = None
    """Decay of the moving baselines per step; 0.98 if absent."""
    weights: (
        Annotated[
            dict[SignalName, NonNegative], Field(min_length=1, max_length=16), Shares("signals")
        ]
        | None
    ) = None
    """Weights of the signals in the index, by name; they sum to 1. A signal that is not named is not
    computed. If absent, each signal has its own share. Of preset Forkcast alone."""
    trigger: TriggerThresholds | None = None
    """When the index makes an event."""
    warmup_steps: StepsOrZero | None = None
    """No trigger before so many accepted steps; 200 if absent."""
    cooldown_steps: StepsOrZero | None = None
    """A departure that lasts asks for a branch again after so many steps, and twice as many each time; 0:
    never. With the other presets: no event for so many steps after a trigger. 200 if absent."""
    patience_rows: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    """How many rows a departure of the loss may take to heal by itself before it asks for a branch; one
    that is severe, slow, inside the model or not finite does not wait; 10 if absent."""
    calm_steps: StepsOrZero | None = None
    """After so many steps without a departure since a collapse a branch may be opened that raises a
    cut learning rate again; 0 = never; 1000 if absent."""
    forecast_horizon_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    """Horizon of the disagreement signal's forecasts, steps; 50 if absent."""


class Mode(StrEnum):
    """Disabled: no monitor. Observe: index and triggers only. DryRun: branches are opened, verified
    and recorded, never applied. Enforce: the winner is adopted.
    """

    DISABLED = "Disabled"
    OBSERVE = "Observe"
    DRY_RUN = "DryRun"
    ENFORCE = "Enforce"


class Rollback(Part):
    """How far back a branch may go."""

    depths: Annotated[list[StepsOrZero], Field(min_length=1, max_length=8)] = [0, 200]
    """Wanted distances of base states before the departure, steps, newest first; each takes the
    nearest state at hand at or before it, or the oldest."""
    steps: Steps = 1000
    """Nothing older than this, steps."""


class ActionChoices(Part):
    """The lattice a branch draws from."""

    learning_rate_scales: Annotated[
        list[Annotated[Decimal, Field(gt=0, le=10)]], Field(min_length=1, max_length=16)
    ] = [0.8, 0.9, 1.0, 1.1]
    """Factors on the scheduled learning rate."""
    weight_decay_scales: Annotated[
        list[Annotated[Decimal, Field(gt=0, le=10)]], Field(min_length=1, max_length=16)
    ] = [0.5, 1.0, 2.0]
    """Factors on the weight decay."""
    clipping: Annotated[list[ClippingChoice], Field(min_length=1, max_length=16)] = [
        "Keep",
        "ZClip",
        "ARC",
        "SPAM",
        "None",
    ]
    """Clipping policies to switch to; Keep is the run's own."""
    momentum_reset: bool = True
    """Whether zeroing both moments is among the choices."""
    data_reorder: bool = False
    """Whether another order of the data is; needs research: true."""
    skip_batch: bool = False
    """Whether skipping the batches from the base through the trigger's is; needs research: true."""


class Acceptance(Part):
    """When a candidate is accepted."""

    preset: Literal["Default", "Literal"] = "Default"
    """Default: risk, loss and volatility together. Literal: the bare rule, for comparison; it has no
    confirm rung, so `confirm.steps` has to be 0."""
    max_risk_quantile: Fraction = 0.2
    """The calibrated risk must be below it."""
    max_volatility_ratio: Positive = 1.05
    """Candidate's over the control's volatility, at most."""
    margin: NonNegative = 0.02
    """Improvement that is needed if the shipped table is silent, nats/token. The table has margins for
    changes of the learning rate, momentum and weight decay, measured on small runs: this value does not
    touch those."""


class Confirm(Part):
    """The confirm rung."""

    steps: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 200
    """Steps after the trigger; 0 = none."""
    finalists: Annotated[int, Field(ge=1, le=16, strict=True)] = 2
    """How many finalists go on to it beside the control."""


class Budget(Part):
    """What branches may cost at most."""

    max_branches: Annotated[int, Field(ge=0, le=MOST_EPOCHS, strict=True)] = 50
    """Branches over the run's life. From five on, a fifth of what is allowed is kept for severe departures."""
    max_per_hundred_thousand_steps: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 30
    """Branches in proportion to the steps taken."""
    deadline_seconds: Annotated[int, Field(ge=1, le=604_800, strict=True)] = 1800
    """Of one branch, seconds."""


class Branching(Part):
    """What happens on a trigger."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(".topK", "self.topK <= self.candidates", "must be <= candidates; lower topK"),
        Rule(
            ".rungs",  # at most 8 of them
            "[0, 1, 2, 3, 4, 5, 6].all(i, i + 1 >= size(self.rungs)"
            " || self.rungs[i] < self.rungs[i + 1])",
            "must rise; sort them and keep each once",
        ),
        Rule(
            ".confirm.steps",
            "self.confirm.steps == 0 || self.confirm.steps > self.rungs[size(self.rungs) - 1]",
            "must exceed the last rung; raise it, or set 0 for none",
        ),
        Rule(
            ".actions",
            "self.research || !(self.actions.dataReorder || self.actions.skipBatch)",
            "dataReorder and skipBatch need research: true; set it, or remove them",
        ),
    )

    mode: Mode = Mode.ENFORCE
    """Disabled: no monitor. Observe: index and triggers only. DryRun: branches are opened, verified
    and recorded, never applied. Enforce: the winner is adopted."""
    policy: Literal["Forkcast", "Ladder"] = "Forkcast"
    """Forkcast: a branch, verified by real rollouts. Ladder: the fixed rule that practice uses and
    evaluations compare with: skip the departure's batches; at the next trigger within 500 steps
    halve the learning rate; then go back to the oldest base and skip 200 batches; nothing is
    verified."""
    executor: Literal["Auto", "Process", "Pod"] = "Auto"
    """Who runs rollouts: Process, children of the run on this machine; Pod, Jobs of a cluster.
    Auto: Pod on a cluster, Process elsewhere."""
    candidates: Annotated[int, Field(ge=1, le=500, strict=True)] = 128
    """Actions that a branch drafts."""
    top_k: Annotated[int, Field(ge=1, le=16, strict=True)] = 6
    """How many of them are verified by rollouts, at most: a departure that asks again or can wait gets fewer."""
    rungs: Annotated[list[Steps], Field(min_length=1, max_length=8)] = [10, 25, 50]
    """Steps after the trigger at which the finalists are compared, rising."""
    confirm: Confirm = Confirm()
    """The confirm rung, after the last of them."""
    max_concurrent_rollouts: Annotated[int, Field(ge=1, le=64, strict=True)] = 2
    """Rollouts that run at once."""
    search: SearchName = "Lattice"
    """Strategy that draws the candidates."""
    rollback: Rollback = Rollback()
    """How far back a branch may go."""
    actions: ActionChoices = ActionChoices()
    """The lattice a branch draws from."""
    acceptance: Acceptance = Acceptance()
    """When a candidate is accepted."""
    budget: Budget = Budget()
    """What branches may cost at most."""
    research: bool = False
    """Allow actions that change the data."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.candidates:
            raise ValueError(
                f"topK: must be <= candidates ({self.top_k} > {self.candidates}); lower topK"
            )
        if sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs: must rise, got {self.rungs}; sort them and keep each once")
        if self.confirm.steps and self.confirm.steps <= self.rungs[-1]:
            raise ValueError(
                f"confirm.steps: must exceed the last rung ({self.confirm.steps} <= {self.rungs[-1]}); "
                "raise it, or set 0 for none"
            )
        if self.confirm.steps and self.acceptance.preset == "Literal":
            raise ValueError(
                "confirm.steps: acceptance.preset Literal has no confirm rung; set confirm.steps to 0"
            )
        if (self.actions.data_reorder or self.actions.skip_batch) and not self.research:
            given = "skipBatch" if self.actions.skip_batch else "dataReorder"
            raise ValueError(f"actions.{given}: needs research: true; set it, or remove {given}")
        return self


class Proxy(Part):
    """Who forecasts."""

    mode: Literal["Service", "Heuristic"] = "Service"
    """Service: the proxy. Heuristic: nobody; a fixed portfolio orders the candidates."""
    horizon_steps: Steps = 50
    """How far ahead, at most the steps left. The shipped model forecasts 50 to 200 steps ahead and
    abstains beyond; a calibrated risk, which `maxRiskQuantile` needs, it has at 50 only."""
    timeout_seconds: Annotated[Decimal, Field(gt=0, le=600)] = 5.0
    """Wait for an answer before the heuristic takes over, seconds."""
