"""The monitor's Prometheus metrics, all in one table. Labels are the run and closed sets; a run
beyond the cap has no series of its own.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from forkcast.records import Index, StepStats, Trigger, TriggerRule
from forkcast_monitor.budget import WHATS, What
from forkcast_wire.access import REASONS

# each would double the series of a counter
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
#: Runs with series of their own; those beyond count together under OVERFLOW.
MOST_RUNS = 1000
OVERFLOW = "_overflow"
_RUN = ["namespace", "run"]


def _gauge(name: str, text: str) -> Gauge:
    return Gauge(f"forkcast_{name}", text, _RUN, registry=REGISTRY)


def _counter(name: str, text: str, *more: str) -> Counter:
    return Counter(f"forkcast_{name}", text, [*_RUN, *more], registry=REGISTRY)


INDEX = _gauge("uncertainty_index", "Uncertainty Index")
ZSCORE = _gauge("uncertainty_zscore", "Index over its spread")
LOSS = _gauge("train_loss", "Training loss, nats/token")
GRAD_NORM = _gauge("grad_norm", "Gradient norm before clipping")
EPOCH = _gauge("lineage_epoch", "Lineage epoch")
LAG = _gauge("stream_lag_steps", "Steps that wait for a late one")
STREAMS = _gauge("report_streams", "Open streams of the run's trainer")
STEPS = _counter("steps", "Accepted steps")
DUPLICATES = _counter("stats_duplicates", "Records that were known already")
DROPPED = _counter("stats_dropped", "Steps that the trainer's ring dropped")
SKIPPED = _counter("saves_skipped", "Saves that were due and never made")
FAILED = _counter("streams_failed", "Report streams that the monitor ended", "code")
OVER_BUDGET = _counter(
    "over_budget", "Streams ended because the run has used up what it may", "reason"
)
TRIGGERS = _counter("triggers", "Triggers by rule", "rule")

RUNS = Gauge("forkcast_monitor_runs", "Registered runs", registry=REGISTRY)
REFUSED = Counter(
    "forkcast_monitor_requests_refused",
    "Calls refused before they were served",
    ["reason"],
    registry=REGISTRY,
)
EXPIRY = Gauge(
    "forkcast_monitor_certificate_expiry_timestamp_seconds",
    "When a certificate in use expires",
    ["file"],
    registry=REGISTRY,
)
for _reason in REASONS:  # from the start: a counter that appears with its first count has not risen
    REFUSED.labels(_reason)
_GAUGES = (INDEX, ZSCORE, LOSS, GRAD_NORM, EPOCH, LAG, STREAMS)
#: Those that are 0 before the first step, too; the others have no value before they have been measured.
_ZERO_AT_FIRST = (LAG, STREAMS)
_COUNTERS = (STEPS, DUPLICATES, DROPPED, SKIPPED)
#: What a trainer may say of itself at most: beyond it a float counts no more.
_MOST = 1 << 53
#: What a Report stream may be ended with, see FAILED.
CODES = (
    "FAILED_PRECONDITION",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
)


class RunSeries:
    """The series of one run. Without ``own`` its counts go to the overflow series, and its gauges
    nowhere: those of different runs have no common value.
    """

    def __init__(self, namespace: str, run: str, *, own: bool) -> None:
        self.labels = (namespace, run) if own else (OVERFLOW, OVERFLOW)
        self._own = own
        self._steps, self._duplicates, self._dropped, self._skipped = (
            m.labels(*self.labels) for m in _COUNTERS
        )
        self._told_skipped = (0, 0)  # by which attempt, how many
        if own:
            for gauge in _ZERO_AT_FIRST:
                gauge.labels(*self.labels)
        self._gauges: dict[Gauge, Gauge] = {}
        for rule in TriggerRule:
            TRIGGERS.labels(*self.labels, rule.value)
        for code in CODES:
            FAILED.labels(*self.labels, code)
        for what in WHATS:
            OVER_BUDGET.labels(*self.labels, what)
        self._over: set[str] = set()

    def accepted(self, folded: int, duplicates: int) -> None:
        """Records of one batch."""
        if folded:
            self._steps.inc(folded)
        if duplicates:
            self._duplicates.inc(duplicates)

    def stands(self, last: StepStats | None, index: Index | None, lag: int) -> None:
        """Where the run stands after a batch."""
        if last is not None:
            self._set(LOSS, last.loss)
            self._set(GRAD_NORM, last.grad_norm)
            self._set(EPOCH, last.epoch)
        if index is not None:
            self._set(INDEX, index.index)
            self._set(ZSCORE, index.z)
        self._set(LAG, lag)

    def streams(self, count: int) -> None:
        """Open Report streams."""
        self._set(STREAMS, count)

    def _set(self, gauge: Gauge, value: float) -> None:
        """A series comes with its first value, and is looked up by its labels only then."""
        if not self._own:
            return
        series = self._gauges.get(gauge)
        if series is None:
            series = self._gauges[gauge] = gauge.labels(*self.labels)
        series.set(value)

    def dropped(self, steps: int) -> None:
        """Steps that the trainer's ring had to drop."""
        self._dropped.inc(steps)

    def skipped(self, attempt: int, saves: int) -> None:
        """How many saves an attempt has skipped since it began."""
        before = self._told_skipped[1] if self._told_skipped[0] == attempt else 0
        saves = min(saves, _MOST)
        if saves > before:
            self._skipped.inc(saves - before)
            self._told_skipped = (attempt, saves)

    def triggered(self, trigger: Trigger) -> None:
        """A trigger fired."""
        TRIGGERS.labels(*self.labels, trigger.rule.value).inc()

    def failed(self, code: str) -> None:
        """The monitor ended a stream; code: of CODES."""
        FAILED.labels(*self.labels, code).inc()

    def over_budget(self, what: What) -> bool:
        """The run has used up what it may; whether it is the first time."""
        OVER_BUDGET.labels(*self.labels, what).inc()
        first = what not in self._over
        self._over.add(what)
        return first


class SeriesTable:
    """Gives each run its series, at most ``most`` of them, and takes them back. Two runs of one
    name (the second may come before the first is forgotten) share theirs.
    """

    def __init__(self, most: int = MOST_RUNS) -> None:
        self._most = most
        self._users: dict[tuple[str, str], set[str]] = {}

    def open(self, uid: str, namespace: str, run: str) -> RunSeries:
        """The series of a run."""
        users = self._users.get((namespace, run))
        if users is None and len(self._users) >= self._most:
            return RunSeries(namespace, run, own=False)
        self._users.setdefault((namespace, run), set()).add(uid)
        return RunSeries(namespace, run, own=True)

    def close(self, uid: str, series: RunSeries) -> None:
        """Remove a forgotten run's series."""
        users = self._users.get(series.labels, set())
        users.discard(uid)
        if users or self._users.pop(series.labels, None) is None:
            return  # another run's too, or the overflow's
        for metric in (*_GAUGES, *_COUNTERS):
            metric.remove_by_labels(dict(zip(_RUN, series.labels, strict=True)))
        for rule in TriggerRule:
            TRIGGERS.remove(*series.labels, rule.value)
        for code in CODES:
            FAILED.remove(*series.labels, code)
        for what in WHATS:
            OVER_BUDGET.remove(*series.labels, what)
