from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRunRequest(_message.Message):
    __slots__ = ("run_uid", "name", "namespace", "uncertainty_json", "mode", "total_steps")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_JSON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    name: str
    namespace: str
    uncertainty_json: str
    mode: str
    total_steps: int
    def __init__(self, run_uid: _Optional[str] = ..., name: _Optional[str] = ..., namespace: _Optional[str] = ..., uncertainty_json: _Optional[str] = ..., mode: _Optional[str] = ..., total_steps: _Optional[int] = ...) -> None: ...

class RegisterRunResponse(_message.Message):
    __slots__ = ("created",)
    CREATED_FIELD_NUMBER: _ClassVar[int]
    created: bool
    def __init__(self, created: bool = ...) -> None: ...

class ForgetRunRequest(_message.Message):
    __slots__ = ("run_uid",)
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    def __init__(self, run_uid: _Optional[str] = ...) -> None: ...

class ForgetRunResponse(_message.Message):
    __slots__ = ("existed",)
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    existed: bool
    def __init__(self, existed: bool = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("run_uids",)
    RUN_UIDS_FIELD_NUMBER: _ClassVar[int]
    run_uids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_uids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunSummary]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunSummary, _Mapping]]] = ...) -> None: ...

class RunSummary(_message.Message):
    __slots__ = ("run_uid", "name", "namespace", "mode", "epoch", "attempt", "next_step", "total_steps", "tokens", "loss", "grad_norm", "index", "z", "triggers", "last_trigger_step", "streams", "seconds_since_report", "over_threshold", "events", "last_event_step", "last_event", "last_event_onset_step")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    LAST_TRIGGER_STEP_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_SINCE_REPORT_FIELD_NUMBER: _ClassVar[int]
    OVER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_ONSET_STEP_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    name: str
    namespace: str
    mode: str
    epoch: int
    attempt: int
    next_step: int
    total_steps: int
    tokens: int
    loss: float
    grad_norm: float
    index: float
    z: float
    triggers: int
    last_trigger_step: int
    streams: int
    seconds_since_report: float
    over_threshold: bool
    events: int
    last_event_step: int
    last_event: str
    last_event_onset_step: int
    def __init__(self, run_uid: _Optional[str] = ..., name: _Optional[str] = ..., namespace: _Optional[str] = ..., mode: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., next_step: _Optional[int] = ..., total_steps: _Optional[int] = ..., tokens: _Optional[int] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., index: _Optional[float] = ..., z: _Optional[float] = ..., triggers: _Optional[int] = ..., last_trigger_step: _Optional[int] = ..., streams: _Optional[int] = ..., seconds_since_report: _Optional[float] = ..., over_threshold: bool = ..., events: _Optional[int] = ..., last_event_step: _Optional[int] = ..., last_event: _Optional[str] = ..., last_event_onset_step: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("run_uid", "epoch", "attempt", "rank", "start_step", "total_steps", "base_step")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    BASE_STEP_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    epoch: int
    attempt: int
    rank: int
    start_step: int
    total_steps: int
    base_step: int
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., rank: _Optional[int] = ..., start_step: _Optional[int] = ..., total_steps: _Optional[int] = ..., base_step: _Optional[int] = ...) -> None: ...

class StepStats(_message.Message):
    __slots__ = ("run_uid", "epoch", "attempt", "rank", "step", "loss", "grad_norm", "grad_norm_clipped", "learning_rate", "tokens", "update_ratio", "rms_max", "update_cosine", "attention_entropy", "attention_logit_max", "activation_mean", "activation_sd", "group_grad_norms", "validation_loss", "skipped", "step_seconds")
    class GroupGradNormsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_RATIO_FIELD_NUMBER: _ClassVar[int]
    RMS_MAX_FIELD_NUMBER: _ClassVar[int]
    UPDATE_COSINE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_LOGIT_MAX_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_MEAN_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_SD_FIELD_NUMBER: _ClassVar[int]
    GROUP_GRAD_NORMS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
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
    update_ratio: float
    rms_max: float
    update_cosine: float
    attention_entropy: _containers.RepeatedScalarFieldContainer[float]
    attention_logit_max: float
    activation_mean: _containers.RepeatedScalarFieldContainer[float]
    activation_sd: _containers.RepeatedScalarFieldContainer[float]
    group_grad_norms: _containers.ScalarMap[str, float]
    validation_loss: float
    skipped: bool
    step_seconds: float
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., rank: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., grad_norm_clipped: _Optional[float] = ..., learning_rate: _Optional[float] = ..., tokens: _Optional[int] = ..., update_ratio: _Optional[float] = ..., rms_max: _Optional[float] = ..., update_cosine: _Optional[float] = ..., attention_entropy: _Optional[_Iterable[float]] = ..., attention_logit_max: _Optional[float] = ..., activation_mean: _Optional[_Iterable[float]] = ..., activation_sd: _Optional[_Iterable[float]] = ..., group_grad_norms: _Optional[_Mapping[str, float]] = ..., validation_loss: _Optional[float] = ..., skipped: bool = ..., step_seconds: _Optional[float] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("first_step", "last_step")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    last_step: int
    def __init__(self, first_step: _Optional[int] = ..., last_step: _Optional[int] = ...) -> None: ...

class StatsBatch(_message.Message):
    __slots__ = ("hello", "stats", "gaps", "seq", "saves_skipped")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SAVES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    stats: _containers.RepeatedCompositeFieldContainer[StepStats]
    gaps: _containers.RepeatedCompositeFieldContainer[Gap]
    seq: int
    saves_skipped: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., stats: _Optional[_Iterable[_Union[StepStats, _Mapping]]] = ..., gaps: _Optional[_Iterable[_Union[Gap, _Mapping]]] = ..., seq: _Optional[int] = ..., saves_skipped: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("seq", "credit", "resume_from", "directives")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVES_FIELD_NUMBER: _ClassVar[int]
    seq: int
    credit: int
    resume_from: int
    directives: _containers.RepeatedCompositeFieldContainer[Directive]
    def __init__(self, seq: _Optional[int] = ..., credit: _Optional[int] = ..., resume_from: _Optional[int] = ..., directives: _Optional[_Iterable[_Union[Directive, _Mapping]]] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("id", "run_uid", "hold", "resume", "collapse", "checkpoint_now")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    COLLAPSE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_NOW_FIELD_NUMBER: _ClassVar[int]
    id: str
    run_uid: str
    hold: Hold
    resume: Resume
    collapse: Collapse
    checkpoint_now: CheckpointNow
    def __init__(self, id: _Optional[str] = ..., run_uid: _Optional[str] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., collapse: _Optional[_Union[Collapse, _Mapping]] = ..., checkpoint_now: _Optional[_Union[CheckpointNow, _Mapping]] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("branch", "deadline_seconds")
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    branch: str
    deadline_seconds: float
    def __init__(self, branch: _Optional[str] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("branch",)
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    branch: str
    def __init__(self, branch: _Optional[str] = ...) -> None: ...

class Collapse(_message.Message):
    __slots__ = ("branch", "epoch", "decision_digest")
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DECISION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    branch: str
    epoch: int
    decision_digest: str
    def __init__(self, branch: _Optional[str] = ..., epoch: _Optional[int] = ..., decision_digest: _Optional[str] = ...) -> None: ...

class CheckpointNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Trigger(_message.Message):
    __slots__ = ("run_uid", "epoch", "step", "onset_step", "rule", "z", "index", "components", "thresholds", "cause", "severe")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ONSET_STEP_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    SEVERE_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    epoch: int
    step: int
    onset_step: int
    rule: str
    z: float
    index: float
    components: _containers.ScalarMap[str, float]
    thresholds: _containers.ScalarMap[str, float]
    cause: str
    severe: bool
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., onset_step: _Optional[int] = ..., rule: _Optional[str] = ..., z: _Optional[float] = ..., index: _Optional[float] = ..., components: _Optional[_Mapping[str, float]] = ..., thresholds: _Optional[_Mapping[str, float]] = ..., cause: _Optional[str] = ..., severe: bool = ...) -> None: ...

class WatchTriggersRequest(_message.Message):
    __slots__ = ("run_uid", "after", "after_by_run")
    class AfterByRunEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_BY_RUN_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    after: int
    after_by_run: _containers.ScalarMap[str, int]
    def __init__(self, run_uid: _Optional[str] = ..., after: _Optional[int] = ..., after_by_run: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TriggerEvent(_message.Message):
    __slots__ = ("seq", "trigger")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    seq: int
    trigger: Trigger
    def __init__(self, seq: _Optional[int] = ..., trigger: _Optional[_Union[Trigger, _Mapping]] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("run_uid", "epoch", "attempt", "step")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    epoch: int
    attempt: int
    step: int
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "cut", "triggers")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    cut: bool
    triggers: int
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., cut: bool = ..., triggers: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("run_uid", "epoch", "attempt", "step", "onset_step", "tier", "component", "cause")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ONSET_STEP_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    epoch: int
    attempt: int
    step: int
    onset_step: int
    tier: int
    component: str
    cause: str
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., attempt: _Optional[int] = ..., step: _Optional[int] = ..., onset_step: _Optional[int] = ..., tier: _Optional[int] = ..., component: _Optional[str] = ..., cause: _Optional[str] = ...) -> None: ...

class GetWindowRequest(_message.Message):
    __slots__ = ("run_uid", "steps")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    steps: int
    def __init__(self, run_uid: _Optional[str] = ..., steps: _Optional[int] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("run_uid", "epoch", "total_steps", "columns")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    run_uid: str
    epoch: int
    total_steps: int
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, run_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., total_steps: _Optional[int] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class WindowReply(_message.Message):
    __slots__ = ("window", "index", "z", "ready", "components", "over_threshold")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    OVER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    window: Window
    index: float
    z: float
    ready: bool
    components: _containers.ScalarMap[str, float]
    over_threshold: bool
    def __init__(self, window: _Optional[_Union[Window, _Mapping]] = ..., index: _Optional[float] = ..., z: _Optional[float] = ..., ready: bool = ..., components: _Optional[_Mapping[str, float]] = ..., over_threshold: bool = ...) -> None: ...

class PostDirectiveRequest(_message.Message):
    __slots__ = ("directive",)
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    directive: Directive
    def __init__(self, directive: _Optional[_Union[Directive, _Mapping]] = ...) -> None: ...

class PostDirectiveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Action(_message.Message):
    __slots__ = ("learning_rate_scale", "weight_decay_scale", "clipping", "momentum_reset", "rewind_steps", "data_reorder", "skip_batches")
    LEARNING_RATE_SCALE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_SCALE_FIELD_NUMBER: _ClassVar[int]
    CLIPPING_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_RESET_FIELD_NUMBER: _ClassVar[int]
    REWIND_STEPS_FIELD_NUMBER: _ClassVar[int]
    DATA_REORDER_FIELD_NUMBER: _ClassVar[int]
    SKIP_BATCHES_FIELD_NUMBER: _ClassVar[int]
    learning_rate_scale: float
    weight_decay_scale: float
    clipping: str
    momentum_reset: bool
    rewind_steps: int
    data_reorder: bool
    skip_batches: int
    def __init__(self, learning_rate_scale: _Optional[float] = ..., weight_decay_scale: _Optional[float] = ..., clipping: _Optional[str] = ..., momentum_reset: bool = ..., rewind_steps: _Optional[int] = ..., data_reorder: bool = ..., skip_batches: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("name", "action")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: Action
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[Action, _Mapping]] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("window", "candidates", "horizon_steps")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    HORIZON_STEPS_FIELD_NUMBER: _ClassVar[int]
    window: Window
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    horizon_steps: int
    def __init__(self, window: _Optional[_Union[Window, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., horizon_steps: _Optional[int] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("point", "low", "high")
    POINT_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    point: float
    low: float
    high: float
    def __init__(self, point: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class CandidateForecast(_message.Message):
    __slots__ = ("candidate", "loss", "p_divergence", "risk", "recovery_steps", "abstained")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    P_DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    loss: Interval
    p_divergence: Interval
    risk: float
    recovery_steps: Interval
    abstained: str
    def __init__(self, candidate: _Optional[str] = ..., loss: _Optional[_Union[Interval, _Mapping]] = ..., p_divergence: _Optional[_Union[Interval, _Mapping]] = ..., risk: _Optional[float] = ..., recovery_steps: _Optional[_Union[Interval, _Mapping]] = ..., abstained: _Optional[str] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("forecasts", "model_digest", "note")
    FORECASTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    forecasts: _containers.RepeatedCompositeFieldContainer[CandidateForecast]
    model_digest: str
    note: str
    def __init__(self, forecasts: _Optional[_Iterable[_Union[CandidateForecast, _Mapping]]] = ..., model_digest: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class TailFrame(_message.Message):
    __slots__ = ("stats", "index", "z", "tier", "events", "components", "onsets")
    class EventsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    class OnsetsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    STATS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    ONSETS_FIELD_NUMBER: _ClassVar[int]
    stats: _containers.RepeatedCompositeFieldContainer[StepStats]
    index: _containers.RepeatedScalarFieldContainer[float]
    z: _containers.RepeatedScalarFieldContainer[float]
    tier: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.ScalarMap[int, str]
    components: _containers.RepeatedCompositeFieldContainer[TailColumn]
    onsets: _containers.ScalarMap[int, int]
    def __init__(self, stats: _Optional[_Iterable[_Union[StepStats, _Mapping]]] = ..., index: _Optional[_Iterable[float]] = ..., z: _Optional[_Iterable[float]] = ..., tier: _Optional[_Iterable[int]] = ..., events: _Optional[_Mapping[int, str]] = ..., components: _Optional[_Iterable[_Union[TailColumn, _Mapping]]] = ..., onsets: _Optional[_Mapping[int, int]] = ...) -> None: ...

class TailColumn(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...
