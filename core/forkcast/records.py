"""What crosses between the parts of Forkcast, as frozen values.

Every number that crosses a border carries its unit and range here, once. Losses are in
nats per token; steps are optimizer steps of the main run's lineage; an *epoch* is a lineage
epoch (0 at the start, +1 for each collapse), never a pass over the data.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from operator import attrgetter
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_EMPTY: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class StatKey:
    """The identity of one statistic; the monitor deduplicates by it.

    ``attempt`` rises by one with every start of the trainer's process, ``epoch`` with every
    collapse; after a rewind the same ``step`` comes again in a new epoch.
    """

    run_uid: str
    epoch: int
    attempt: int
    rank: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one optimizer step of one rank looked like. ``None`` means "not sampled at this step".

    loss: training loss of the step, nats/token, mean over all ranks and micro-batches.
    grad_norm: global L2 norm of the gradient before clipping (float32 sum), >= 0.
    grad_norm_clipped: the same after clipping; equal to ``grad_norm`` where nothing was clipped.
    learning_rate: the rate the step used, after schedule and after any action's factor.
    tokens: tokens seen by the lineage up to and including this step, all ranks.
    update_ratio: L2 norm of the update over L2 norm of the weights.
    rms_max: largest RMS_t = sqrt(mean(g^2 / max(v_{t-1}, eps^2))) over the tensors
        (arXiv 2304.13013, section 3).
    update_cosine: cosine of this step's gradient and the previous update, in [-1, 1].
    attention_entropy: [layers], nats over log(visible keys), in [0, 1].
    attention_logit_max: largest pre-softmax attention logit of the sampled sequence.
    activation_mean, activation_sd: [layers], of the block outputs of the sampled sequence.
    group_grad_norms: L2 norms by group: embedding, attention, mlp, norm, other.
    validation_loss: nats/token of the fixed validation batches, where one was taken at this step.
    skipped: True if tier 0 refused the update (non-finite, or by the clipping policy).
    step_seconds: wall time of the step; never enters a decision.
    """

    run_uid: str
    epoch: int
    attempt: int
    rank: int
    step: int
    loss: float
    grad_norm: float
    grad_norm_clipped: float
    learning_rate: float
    tokens: int
    update_ratio: float | None = None
    rms_max: float | None = None
    update_cosine: float | None = None
    attention_entropy: tuple[float, ...] | None = None
    attention_logit_max: float | None = None
    activation_mean: tuple[float, ...] | None = None
    activation_sd: tuple[float, ...] | None = None
    group_grad_norms: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    validation_loss: float | None = None
    skipped: bool = False
    step_seconds: float | None = None

    @property
    def key(self) -> StatKey:
        """The identity under which this record counts once."""
        return StatKey(self.run_uid, self.epoch, self.attempt, self.rank, self.step)


#: The per-step columns of a Window, in wire order. NaN stands for "not sampled".
WINDOW_COLUMNS = (
    "step",
    "loss",
    "grad_norm",
    "grad_norm_clipped",
    "learning_rate",
    "update_ratio",
    "rms_max",
    "update_cosine",
    "attention_entropy",
    "attention_logit_max",
    "activation_sd",
    "validation_loss",
    "index_z",
)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The last T accepted steps of a run as columns, oldest first.

    ``columns[name]`` has shape [T] for every name of WINDOW_COLUMNS; per-layer statistics stand
    as their mean over layers, values that were not sampled as NaN. ``total_steps`` is the run's
    length, so that a reader knows how many steps are left.
    """

    run_uid: str
    epoch: int
    total_steps: int
    columns: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        missing = [name for name in WINDOW_COLUMNS if name not in self.columns]
        lengths = {len(column) for column in self.columns.values()}
        if missing or len(lengths) > 1:
            raise ValueError(f"window: needs equal columns {WINDOW_COLUMNS}; {missing=} {lengths=}")

    def __len__(self) -> int:
        return len(self.columns["step"])

    @classmethod
    def of(
        cls, run_uid: str, epoch: int, total_steps: int, rows: Iterable[Sequence[float]]
    ) -> Window:
        """From rows of `window_row`, oldest first."""
        table = np.array(list(rows), dtype=np.float64).reshape(-1, len(WINDOW_COLUMNS))
        columns = {name: table[:, i].copy() for i, name in enumerate(WINDOW_COLUMNS)}
        return cls(run_uid, epoch, total_steps, columns)


def window_row(stats: StepStats, z: float) -> array[float]:
    """One judged step as a row of a window: its columns only, whatever size the record has."""
    row = array("d", [v if type(v) is float else _cell(v) for v in _measured(stats)])
    row.append(z)
    return row


#: All columns but the last, which the detector gives.
_measured = attrgetter(*WINDOW_COLUMNS[:-1])


def _cell(value: float | tuple[float, ...] | None) -> float:
    if value is None:
        return math.nan
    return sum(value) / len(value) if isinstance(value, tuple) else float(value)


class Tier(IntEnum):
    """How much a row asks for. CALM: nothing. WATCH: a tail as one row in a few thousand has it; a figure
    only. EVENT: a departure, recorded and shown. BRANCH: one that has not healed by itself, or that
    does not wait. STOP: nothing is learnt any more.
    """

    CALM = 0
    WATCH = 1
    EVENT = 2
    BRANCH = 3
    STOP = 4


@dataclass(slots=True)
class Index:
    """The Uncertainty Index at one step. Nobody changes it; it is not frozen, because there is one for every
    row, and a frozen dataclass takes four times as long to make.

    components: u_i of each signal that has something to say, in [0, 8]; 3.2 is what about one healthy row
        in 100,000 reaches (the slow and the internal ones: what no healthy run reached).
    index: sum(w_i u_i) / sum(w_i) over the signals present.
    z: what the thresholds apply to, in the unit of the components: the largest of them, or, if that
        is more, their sum with each weight over the largest weight. 0 during warm-up.
    ready: False during warm-up, and after a gap until the level is known again.
    tier: what this row asks for.
    """

    step: int
    epoch: int
    components: Mapping[str, float]
    index: float
    z: float
    ready: bool
    tier: Tier = Tier.CALM


class TriggerRule(StrEnum):
    """Which rule fired."""

    CONSECUTIVE = "Consecutive"
    SINGLE = "Single"
    SLOW = "Slow"  # the loss or the norm crept up
    INTERNAL = "Internal"  # attention, activations or the update, whatever the loss says
    VALIDATION_REGRESSION = "ValidationRegression"
    INSTABILITY_RATE = "InstabilityRate"
    NON_FINITE = "NonFinite"
    FORCED = "Forced"
    CALM = "Calm"  # no departure: long enough without one to try a higher rate again


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A departure as it is shown and recorded, when it begins and whenever its tier rises.

    onset_step: the first step of the departure, <= step. component: the signal that says most, or the
        rule where no signal does. cause: one sentence: statistic, size, how unusual, data or state.
    """

    run_uid: str
    epoch: int
    step: int
    onset_step: int
    tier: Tier
    component: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A durable statement that a run departed from its healthy course at ``step``; or, by rule
    Calm, that it has kept to it since the last collapse.

    onset_step: the first step of the departure (<= step), ``step`` where there is none; base states
        are taken before it.
    thresholds: the limits in force, by name, so that the record explains itself.
    cause: one sentence: component, statistic, how unusual, since when, data or state; empty in records
        of earlier versions.
    severe: whether its signal calls the row severe, so that the departure was not waited for; False in
        records of earlier versions.
    """

    run_uid: str
    epoch: int
    step: int
    onset_step: int
    rule: TriggerRule
    z: float
    index: float
    components: Mapping[str, float]
    thresholds: Mapping[str, float]
    cause: str = field(default="", metadata={"later": True})
    severe: bool = field(default=False, metadata={"later": True})

    @property
    def id(self) -> str:
        """The deterministic identity ``e<epoch>-t<step>``: two monitors give the same."""
        return f"e{self.epoch}-t{self.step}"

    @property
    def departure(self) -> tuple[int, int]:
        """What tells departures apart, epoch and onset: a departure that lasts asks again and again."""
        return self.epoch, self.onset_step


class StateKind(StrEnum):
    """Where a saved state comes from."""

    CHECKPOINT = "Checkpoint"
    RING = "Ring"
    ROLLOUT = "Rollout"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRef:
    """A durable training state: a folder of the store that holds cp_<step>.ptz and manifest.json.

    key: the folder's key, without a trailing slash. digest: sha256 hex of the .ptz file's index,
    which holds the digests of its frames (of the whole file in format version 1).
    good: True once W healthy steps followed it.
    """

    key: str
    kind: StateKind
    epoch: int
    attempt: int
    step: int
    digest: str
    size_bytes: int
    good: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """A point with a calibrated lower and upper bound, ``low <= point <= high``."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the proxy expects of one candidate.

    loss: E[loss at the horizon], nats/token, or None if the model abstains on it.
    p_divergence: P(instability event within the horizon), in [0, 1].
    risk: upper 90 % conformal bound of that probability, in [0, 1].
    recovery_steps: steps until the run is back on course, >= 0.
    abstained: why the model refuses to rank this candidate; None if it does not. An
        abstaining forecast carries no numbers that a decision may use.
    """

    candidate: str
    loss: Interval | None
    p_divergence: Interval | None
    risk: float | None
    recovery_steps: Interval | None
    abstained: str | None = None


class TrialStatus(StrEnum):
    """How a rollout stood at a rung."""

    OK = "Ok"
    DIVERGED = "Diverged"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one rollout measured at one rung.

    rung: steps after the trigger step. step: lineage step at which it was measured (t + rung).
    validation_loss: with the current weights, nats/token.
    mean_weights_loss: with the mean of the last min(25, half the steps) weights, nats/token.
    losses_from: lineage step of ``losses[0]``; normally base step + 1.
    losses: training losses, nats/token, one a step without gaps, at most the last 1,024. All
        rollouts of a branch see the same batch at the same step.
    spike_steps: lineage steps since the base that the SpikeScore rule flagged (OLMo-core
        stability_monitor: above mean + 6 sd of the previous 128 values, loss or grad norm). The
        windows go on from the base's, so all rollouts are measured against one past.
    steps_run: optimizer steps this rollout has paid for so far, the replay included.
    state: its published end state at this rung, where it publishes one.
    failure: why it failed, one line; empty unless status is FAILED.
    """

    candidate: str
    rung: int
    step: int
    status: TrialStatus
    validation_loss: float | None
    mean_weights_loss: float | None
    losses_from: int
    losses: tuple[float, ...]
    spike_steps: tuple[int, ...]
    steps_run: int
    seconds: float
    state: StateRef | None = None
    failure: str = ""
