"""The custom resources as the operator writes them: a TrainingRun's status, a Branch and its status.

A run's spec is the manifest's. What stands here is a projection for people, `kubectl wait` and
tools: the store's lineage and branch records are the truth. Nothing here grows with the run's
length, and nothing changes with every step; decimals are strings. A Branch's spec is what
branch.json holds, frozen when the branch is opened.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from forkcast.allowance import Grounds
from forkcast.decision import DraftSource, Outcome, ProxyAnswer, Verdict
from forkcast.records import TriggerRule
from forkcast_wire.fields import (
    NAME_PATTERN,
    Count,
    ObjectName,
    Part,
    Rule,
    Steps,
    StepsOrZero,
    WrittenDecimal,
)

FINALIZER: Final = "forkcast.dev/finalizer"
#: Labels of everything that belongs to a run.
LABEL_RUN: Final = "forkcast.dev/run"
LABEL_BRANCH: Final = "forkcast.dev/branch"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"


def _to_the_second(value: dt.datetime) -> dt.datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return value.astimezone(dt.UTC).replace(microsecond=0)


Time = Annotated[
    dt.datetime,
    AfterValidator(_to_the_second),
    PlainSerializer(lambda value: value.strftime("%Y-%m-%dT%H:%M:%SZ")),
]
Text = Annotated[str, Field(max_length=1024)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Reason = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
]
Key = Annotated[str, Field(max_length=1024)]
Small = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
CandidateName = Annotated[str, Field(min_length=1, max_length=63)]
NonNegative = Annotated[WrittenDecimal, Field(ge=0)]


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class RunCondition(StrEnum):
    """Conditions of a TrainingRun. All are always there, but Reconciling and Stalled, which are
    there only while true.
    """

    READY = "Ready"
    """True while pods run and steps come, and once the run is complete; its reason says what the run
    does, or what is wrong."""
    SUSPENDED = "Suspended"
    BRANCHING = "Branching"
    """A branch is open; its reason says so, or why its rollouts do not run."""
    STABLE = "Stable"
    """The monitor finds the Uncertainty Index not over its threshold; Unknown during warm-up."""
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    """A restart would find a state whose bytes verify."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"
    """Complete or Failed."""
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class BranchCondition(StrEnum):
    """Conditions of a Branch. All are always there."""

    READY = "Ready"
    """True once the branch has ended as it should; its reason is the phase, then the outcome."""
    DRAFTED = "Drafted"
    VERIFIED = "Verified"
    ACCEPTED = "Accepted"
    """False, with the outcome as its reason, where nothing is adopted."""
    COLLAPSED = "Collapsed"
    """The main run has adopted the winner and a checkpoint of the new epoch is durable."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"


#: Conditions that stand in the status only while they are true (kstatus).
TRANSIENT: Final = frozenset({RunCondition.RECONCILING, RunCondition.STALLED})


class RunState(StrEnum):
    """What a run does: the reason of its Ready condition, and the column STATE."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    BRANCHING = "Branching"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    NO_PROGRESS = "NoProgress"
    """Pods run, and no step has been reported for long."""
    RESTARTING = "Restarting"
    COMPLETED = "Completed"
    FAILED = "Failed"
    DELETING = "Deleting"


class Condition(Part):
    """One condition, as in every Kubernetes resource."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """Which condition."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Reason
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, in a sentence."""
    observed_generation: Count
    """The metadata.generation that this was judged by."""
    last_transition_time: Time
    """When the status last changed."""


class RunProgress(Part):
    """How far the run is."""

    step: StepsOrZero
    """Optimizer steps of the lineage so far."""
    total_steps: Steps
    """Steps in all."""
    tokens: Count = 0
    """Tokens seen by the lineage so far."""
    percentage: Annotated[int, Field(ge=0, le=100, strict=True)] = 0
    """Steps done of all, percent, rounded down."""
    estimated_remaining_seconds: Count | None = None
    """At the recent pace, seconds. Absent while the pace is unknown."""


class MetricValue(Part):
    """One figure of the run."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
    """Its name, e.g. train_loss."""
    value: WrittenDecimal
    """Its value, a decimal."""


class UncertaintyStatus(Part):
    """The detector's view, as of the last write of this status."""

    index: WrittenDecimal
    """Uncertainty Index."""
    z: WrittenDecimal
    """How unusual the last step is, in the unit of the thresholds."""
    ready: bool
    """False during warm-up."""
    last_trigger_step: StepsOrZero | None = None
    """Step of the newest trigger."""
    events: StepsOrZero = 0
    """Departures so far, whether they asked for a branch or healed."""
    last_event_step: StepsOrZero | None = None
    """Step of the newest departure."""
    last_event: Annotated[str, Field(max_length=1000)] = ""
    """What it was, in a sentence."""


class CheckpointInfo(Part):
    """A durable state."""

    step: StepsOrZero
    """Step of the lineage it was taken after."""
    epoch: Count
    """Lineage epoch it belongs to."""
    key: Key
    """Its folder in the store, below storage.prefix."""
    sha256: Digest
    """Digest of its container."""
    size_bytes: Count
    """Size of its container, bytes."""


class CheckpointsStatus(Part):
    """What a restart could start from; the list itself stands in the store."""

    latest: CheckpointInfo | None = None
    """The newest state of the highest epoch."""
    oldest_step: StepsOrZero | None = None
    """Step of the oldest state that is kept."""
    count: Small = 0
    """How many are kept."""


class LineageStatus(Part):
    """Where the run's lineage stands; lineage/<epoch>.json in the store is the truth."""

    epoch: Count = 0
    """Collapses so far."""
    branch: ObjectName | None = None
    """The Branch that opened this epoch."""
    decision_sha256: Digest | None = None
    """Digest of its decision.json."""


class BranchesStatus(Part):
    """Branches of the run, counted by how they ended."""

    total: Small = 0
    """Opened so far."""
    running: Small = 0
    """Open now: 0 or 1."""
    accepted: Small = 0
    """A candidate was adopted (or, in mode DryRun, would have been)."""
    control_adopted: Small = 0
    """The unchanged control was adopted: a transient cause."""
    no_action: Small = 0
    """Nothing was better than going on; DataCaused among them."""
    failed: Small = 0
    """Ended by a failure or by the deadline; Superseded among them."""
    suppressed: Small = 0
    """Triggers that opened no branch."""
    last_suppressed: Text | None = None
    """The newest of them and why, a sentence."""
    active_name: ObjectName | None = None
    """The one that is open."""
    last_name: ObjectName | None = None
    """The newest."""
    rollout_steps: Count = 0
    """Optimizer steps that all rollouts have paid for."""


class TrainerStatus(Part):
    """The workload that trains."""

    kind: Literal["JobSet", "Job"]
    """What runs the pods."""
    name: ObjectName
    """Its name."""
    attempt: Count = 0
    """Starts so far, less one."""
    restarts: Small = 0
    """Starts after a failure, since the last retry of a failed run. Evictions for a node's sake,
    preemptions and drains are none."""
    active_seconds: Count = 0
    """How long the starts that have ended were active, seconds."""
    counted: Annotated[str, Field(max_length=253)] = ""
    """The newest of them."""
    disrupted: Annotated[str, Field(max_length=253)] = ""
    """The start of which a pod was evicted, preempted or drained away, if it is this one: its end is no
    failure of the run."""
    pods: Small = 0
    """Pods it wants."""
    ready_pods: Small = 0
    """Pods that are ready."""


class LastFailure(Part):
    """What went wrong last, and what is done about it."""

    reason: Reason
    """In one word."""
    message: Text
    """In a sentence."""
    time: Time
    """When."""
    attempts: Small = 0
    """Failures in a row."""
    next_retry_time: Time | None = None
    """When it is tried again. Absent: it is not."""


Conditions = Annotated[
    list[Condition],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-map-keys": ["type"]}),
]


class TrainingRunStatus(Part):
    """What the operator last saw of a run; written at most every 30 s for progress alone."""

    observed_generation: Count = 0
    """The metadata.generation that this status answers."""
    conditions: Conditions = []
    """Ready, Suspended, Branching, Stable, CheckpointAvailable, Complete, Failed and Finished;
    Reconciling and Stalled while true."""
    start_time: Time | None = None
    """When the trainer first started."""
    completion_time: Time | None = None
    """When the run ended."""
    last_heartbeat_time: Time | None = None
    """When the monitor last heard of the trainer."""
    progress: RunProgress | None = None
    """How far the run is."""
    metrics: Annotated[
        list[MetricValue],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    """The newest figures: train_loss, grad_norm, learning_rate, validation_loss."""
    uncertainty: UncertaintyStatus | None = None
    """The detector's view."""
    checkpoints: CheckpointsStatus = CheckpointsStatus()
    """What a restart could start from."""
    lineage: LineageStatus = LineageStatus()
    """Where the lineage stands."""
    branches: BranchesStatus = BranchesStatus()
    """Branches so far."""
    trainer: TrainerStatus | None = None
    """The workload that trains."""
    last_failure: LastFailure | None = None
    """What went wrong last."""

    def document(self) -> dict[str, Any]:
        """As it is sent: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# ------------------------------------------------------------------------------------------- branch


class RunRef(Part):
    """The TrainingRun a branch belongs to."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=NAME_PATTERN)]
    """Its name, in the same namespace."""
    uid: Annotated[str, Field(min_length=1, max_length=64)]
    """Its metadata.uid."""


class BranchTrigger(Part):
    """Why the branch was opened."""

    epoch: Count
    """Lineage epoch in which it fired."""
    step: StepsOrZero
    """Step at which it fired."""
    onset_step: StepsOrZero
    """First step of the departure."""
    rule: TriggerRule
    """Which rule fired."""
    z: WrittenDecimal
    """The index over its healthy spread, then."""
    index: WrittenDecimal
    """The Uncertainty Index, then."""
    components: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], WrittenDecimal],
        Field(max_length=16),
    ] = {}
    """Each signal's part of it, a robust z."""
    thresholds: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], WrittenDecimal],
        Field(max_length=16),
    ] = {}
    """The limits in force, by name."""
    cause: Text = ""
    """What departed, how unusual it is, since when."""
    severe: bool = False
    """Whether its signal called the step severe."""


class BranchAcceptance(Part):
    """When a candidate is accepted, copied from the run."""

    preset: Literal["Default", "Literal"]
    """Which set of conditions."""
    max_risk_quantile: NonNegative
    """The calibrated risk must be below it."""
    max_volatility_ratio: NonNegative
    """Candidate's over the control's volatility, at most."""
    unknown_margin: NonNegative
    """Margin where the shipped table is silent, nats/token."""


class BranchAllowance(Part):
    """Why the branch may cost what it may: its `topK` beside the run's."""

    most: Annotated[int, Field(ge=1, le=16, strict=True)]
    """The run's `branching.topK` when the branch was opened."""
    grounds: Grounds
    """Forced, Severe, First: the whole of it. Again: the departure has had a branch already. SpentEarly:
    more of the budget is spent than of the run. SlowMeasurement, Calm: it can wait."""


class BranchSpec(Part):
    """A branch as it was opened. Nothing of it ever changes: later edits of the run do not reach it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("", "self == oldSelf", "a branch's spec never changes; edit the TrainingRun"),
    )

    run_ref: RunRef
    """The run it belongs to."""
    trigger: BranchTrigger
    """Why it was opened."""
    opened_at: Time
    """When."""
    deadline_seconds: Annotated[int, Field(ge=1, le=604_800, strict=True)]
    """How long it may take, seconds: from opening, or from when a queue admits its first rollout."""
    candidates: Annotated[int, Field(ge=1, le=500, strict=True)]
    """How many actions are drafted."""
    top_k: Annotated[int, Field(ge=1, le=16, strict=True)]
    """How many of them are verified."""
    allowance: BranchAllowance | None = None
    """Why so many; absent under policy Ladder, and in branches of earlier versions."""
    rungs: Annotated[list[Steps], Field(min_length=1, max_length=8)]
    """Steps after the trigger at which all are compared."""
    confirm_steps: Annotated[int, Field(ge=0, le=100_000, strict=True)]
    """The confirm rung; 0 = none."""
    confirm_finalists: Annotated[int, Field(ge=1, le=16, strict=True)]
    """How many go on to it beside the control."""
    depths: Annotated[list[StepsOrZero], Field(min_length=1, max_length=8)]
    """Wanted distances of the base states before the departure, steps."""
    apply: bool
    """False in mode DryRun: decided and recorded, never adopted."""
    acceptance: BranchAcceptance
    """When a candidate is accepted."""


class DraftStatus(Part):
    """The draft: draft.json in the store holds all of it."""

    source: DraftSource
    """Who ordered the candidates."""
    count: Small
    """How many were drawn."""
    finalists: Annotated[list[CandidateName], Field(max_length=16)] = []
    """Those that are verified, best first."""
    model_sha256: Annotated[str, Field(max_length=64)] = ""
    """Digest of the proxy's model; empty for the heuristic."""
    proxy: ProxyAnswer = ProxyAnswer.NOT_ASKED
    """How asking the proxy went."""
    note: Text = ""
    """What its forecasts lack, and why."""


class RolloutState(StrEnum):
    """How a rollout stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    MEASURED = "Measured"
    STOPPED = "Stopped"
    FAILED = "Failed"


class RolloutStatus(Part):
    """One rollout: a finalist, or the control."""

    name: CandidateName
    """Name of the candidate, or control."""
    action: Annotated[str, Field(max_length=256)] = ""
    """What it changes, in words."""
    job_name: ObjectName | None = None
    """The Job that ran it last."""
    state: RolloutState
    """How it stands."""
    reason: Reason | None = None
    """Why it has no running pod: NotAdmitted, NoPods, or what its pod waits for."""
    message: Text = ""
    """The same in a sentence, or why it failed."""
    rung: StepsOrZero = 0
    """The last rung it was measured at, steps after the trigger."""
    validation_loss: WrittenDecimal | None = None
    """There, with the mean of its recent weights, nats/token."""
    improvement: WrittenDecimal | None = None
    """The control's loss less its own, nats/token."""
    volatility_ratio: WrittenDecimal | None = None
    """Its volatility over the control's."""
    risk: WrittenDecimal | None = None
    """The proxy's calibrated risk, where there is one."""
    verdict: Verdict | None = None
    """What became of it."""


class DecisionStatus(Part):
    """The decision: decision.json in the store holds all of it."""

    outcome: Outcome
    """How the branch ends."""
    reason: Text
    """Why."""
    winner: CandidateName | None = None
    """Whose end state is adopted."""
    action: Annotated[str, Field(max_length=256)] = ""
    """What the winner changed, in words."""
    key: Key
    """Where decision.json stands, below storage.prefix."""
    sha256: Digest
    """Its digest."""
    time: Time
    """When it was taken."""


class BranchCost(Part):
    """What the branch spent."""

    rollout_steps: Count = 0
    """Optimizer steps of all rollouts, the replay included."""
    rollout_seconds: NonNegative = 0.0
    """Their wall time, seconds."""


class BranchStatus(Part):
    """What the operator last saw of a branch."""

    observed_generation: Count = 0
    """The metadata.generation that this status answers."""
    conditions: Conditions = []
    """Ready, Drafted, Verified, Accepted, Collapsed, Complete, Failed and Finished."""
    draft: DraftStatus | None = None
    """The draft."""
    rollouts: Annotated[
        list[RolloutStatus],
        Field(max_length=17, json_schema_extra={"x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    """The finalists and the control."""
    decision: DecisionStatus | None = None
    """The decision."""
    cost: BranchCost = BranchCost()
    """What the branch spent."""
    deadline_time: Time | None = None
    """When it ends at the latest. Absent while a queue holds its rollouts back."""
    completion_time: Time | None = None
    """When it ended."""

    def document(self) -> dict[str, Any]:
        """As it is sent: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def set_condition(
    conditions: Sequence[Condition],
    kind: str,
    status: ConditionStatus,
    reason: str,
    message: str = "",
    *,
    generation: int,
    now: dt.datetime,
) -> list[Condition]:
    """The conditions with one of them set; its transition time moves only where its status does."""
    before = next((one for one in conditions if one.type == kind), None)
    kept = before is not None and before.status == status
    changed = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and kept else now,
    )
    rest = [one for one in conditions if one.type != kind]
    return sorted([*rest, changed], key=lambda one: one.type)
