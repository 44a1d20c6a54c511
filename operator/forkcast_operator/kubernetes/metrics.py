"""The operator's Prometheus metrics. Labels come from closed sets, but `namespace` and `run`, whose
series go with the run.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from forkcast.admission import Refusal
from forkcast.decision import Outcome, ProxyAnswer, Verdict
from forkcast_wire.resources import RunState

# each would double the series of a counter
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = CollectorRegistry()
_P: Final = "forkcast_operator"
_RUN: Final = ("namespace", "run")

BUILD = Gauge(f"{_P}_build_info", "Which operator runs.", ["version"], registry=REGISTRY)
LEADER = Gauge(f"{_P}_leader", "1 while this replica holds the lease.", registry=REGISTRY)
EVENT_AGE = Gauge(
    f"{_P}_last_event_age_seconds",
    "Seconds since the watch on TrainingRuns last showed life.",
    registry=REGISTRY,
)
EXPIRY = Gauge(
    f"{_P}_certificate_expiry_timestamp_seconds",
    "When a certificate that the operator uses for a service expires.",
    ["service", "file"],
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    f"{_P}_reconcile_seconds",
    "One reconcile pass.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    f"{_P}_reconcile_errors",
    "Passes that failed and are retried.",
    ["kind", "reason"],
    registry=REGISTRY,
)
API_REQUESTS = Counter(
    f"{_P}_api_requests", "Requests to the API server.", ["verb", "code"], registry=REGISTRY
)
RUNS = Gauge(
    f"{_P}_runs",
    "TrainingRuns by the reason of their Ready condition.",
    ["state"],
    registry=REGISTRY,
)
RUN_FAILED = Gauge(
    f"{_P}_run_failed", "1 while the run's Failed condition is True.", _RUN, registry=REGISTRY
)
RUN_STALLED = Gauge(
    f"{_P}_run_stalled", "1 while the run's Stalled condition is True.", _RUN, registry=REGISTRY
)
RESTARTS = Counter(
    f"{_P}_trainer_restarts", "Starts of the trainer after a failure.", _RUN, registry=REGISTRY
)
CHECKPOINT_AGE = Gauge(
    f"{_P}_checkpoint_age_seconds",
    "Seconds since the newest durable checkpoint of a running run was written.",
    _RUN,
    registry=REGISTRY,
)
CHECKPOINT_BEHIND = Gauge(
    f"{_P}_checkpoint_intervals_behind",
    "Steps since the newest durable checkpoint of a running run, in intervals of its manifest.",
    _RUN,
    registry=REGISTRY,
)
RUN_UNSTABLE = Gauge(
    f"{_P}_run_unstable",
    "1 while the index of a running run is over the threshold of its manifest.",
    _RUN,
    registry=REGISTRY,
)
BRANCHES_ACTIVE = Gauge(f"{_P}_branches_active", "Branches not finished.", registry=REGISTRY)
BRANCHES = Counter(f"{_P}_branches", "Branches finished.", ["outcome"], registry=REGISTRY)
BRANCH_SECONDS = Histogram(
    f"{_P}_branch_seconds",
    "From open to finished.",
    ["outcome"],
    buckets=(10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200),
    registry=REGISTRY,
)
ROLLOUTS = Counter(f"{_P}_rollouts", "Finalists judged.", ["verdict"], registry=REGISTRY)
ROLLOUT_STEPS = Counter(
    f"{_P}_rollout_steps",
    "Optimizer steps paid for by rollouts of finished branches.",
    _RUN,
    registry=REGISTRY,
)
PROXY_REQUESTS = Counter(
    f"{_P}_proxy_requests", "Forecasts asked for.", ["result"], registry=REGISTRY
)
#: Label `result`, by answer; a proxy that was not asked is not counted.
PROXY_RESULTS: Final = {
    ProxyAnswer.ANSWERED: "ok",
    ProxyAnswer.ABSTAINED: "abstained",
    ProxyAnswer.UNAVAILABLE: "unavailable",
    ProxyAnswer.INVALID: "unavailable",
}
STORE_ERRORS = Counter(f"{_P}_store_errors", "Failed calls to the object store.", registry=REGISTRY)
SUPPRESSED = Counter(
    f"{_P}_triggers_suppressed", "Triggers that opened no Branch.", ["reason"], registry=REGISTRY
)

_OF_A_RUN: Final = (
    RUN_FAILED,
    RUN_STALLED,
    RESTARTS,
    CHECKPOINT_AGE,
    CHECKPOINT_BEHIND,
    RUN_UNSTABLE,
    ROLLOUT_STEPS,
)
SUPPRESSIONS: Final = tuple(reason.value for reason in Refusal)
_KINDS: Final = ("TrainingRun", "Branch")
_ERRORS: Final = ("ApiServer", "Internal", "Monitor", "Store")
_VERBS: Final = ("get", "list", "watch", "create", "apply", "patch", "delete")


def declare() -> None:
    """Let every series of a closed set be there from the start, at zero: to Prometheus a counter
    that appears with its first count has not risen.
    """
    for kind in _KINDS:
        RECONCILE_SECONDS.labels(kind)
    for reason in _ERRORS:
        RECONCILE_ERRORS.labels("TrainingRun", reason)
    for verb in _VERBS:
        for code in ("2xx", "4xx", "409", "429", "5xx", "error"):
            API_REQUESTS.labels(verb, code)
    for state in RunState:
        RUNS.labels(state.value).set(0)
    for outcome in Outcome:
        BRANCHES.labels(outcome.value)
    for verdict in Verdict:
        ROLLOUTS.labels(verdict.value)
    for result in PROXY_RESULTS.values():
        PROXY_REQUESTS.labels(result)
    for reason in SUPPRESSIONS:
        SUPPRESSED.labels(reason)


def declare_run(namespace: str, run: str) -> None:
    """The same, of one run."""
    for counter in (RESTARTS, ROLLOUT_STEPS):
        counter.labels(namespace, run)


def forget(namespace: str, run: str) -> None:
    """Drop the series of a run that is gone."""
    for metric in _OF_A_RUN:
        metric.remove_by_labels({"namespace": namespace, "run": run})


def code_of(status: int) -> str:
    """The label of an HTTP status: 409 and 429 stand alone; 0 is no answer."""
    if status in (409, 429):
        return str(status)
    return f"{status // 100}xx" if status else "error"
