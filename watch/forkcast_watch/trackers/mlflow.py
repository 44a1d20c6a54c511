"""MLflow: a run with metrics by step, and a tag for each event. Needs `forkcast[mlflow]`."""

from __future__ import annotations

import time
from typing import Any, Final

from forkcast.records import Index, StepStats
from forkcast_watch.trackers.base import Event, Held, TrackedRun, event_name, figures, named_event

_UID: Final = "forkcast.run_uid"
_EVENT: Final = "forkcast.event."
_BETWEEN: Final = "-"
#: Metrics in one request; the server takes at most 1,000.
_MOST: Final = 900


class Mlflow:
    """``mlflow:EXPERIMENT``, on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, target: str, run: TrackedRun) -> None:
        """Raises ModuleNotFoundError without the extra, MlflowException."""
        from mlflow.entities import Metric, RunTag
        from mlflow.tracking import MlflowClient

        self._metric: Any = Metric
        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(target or "Default")
        place = experiment.experiment_id if experiment else self._client.create_experiment(target)
        found = self._client.search_runs([place], f"tags.`{_UID}` = '{run.uid}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {_UID: run.uid}
            self._run = self._client.create_run(place, tags=tags, run_name=run.name).info.run_id
        self._tag: Any = RunTag
        self._waiting: list[Any] = []

    def held(self) -> Held:
        """See `Tracker.held`."""
        rows = self._client.get_metric_history(self._run, "epoch")
        newest = max(((int(row.value), int(row.step)) for row in rows), default=None)
        tags = self._client.get_run(self._run).data.tags
        events = (name.removeprefix(_EVENT) for name in tags if name.startswith(_EVENT))
        return Held(newest, frozenset(named_event(name, _BETWEEN) for name in events))

    def step(self, stats: StepStats, index: Index | None) -> None:
        """Its figures as metrics, sent with those of other steps."""
        now = int(time.time() * 1000)
        found = figures(stats, index)
        if len(self._waiting) + len(found) > _MOST:
            self._send()
        self._waiting += [self._metric(name, v, now, stats.step) for name, v in found.items()]

    def event(self, event: Event) -> None:
        """A tag with its cause, and its tier as a metric."""
        tier = int(event.tier)
        self._waiting.append(self._metric("event_tier", tier, int(time.time() * 1000), event.step))
        text = f"since step {event.onset_step}: {event.cause}"
        name = _EVENT + event_name(event, _BETWEEN)
        self._send([self._tag(name, text[:5000])])

    def close(self) -> None:
        """Send the rest and end the run."""
        self._send()
        self._client.set_terminated(self._run)

    def _send(self, tags: list[Any] | None = None) -> None:
        metrics, self._waiting = self._waiting, []
        if metrics or tags:
            self._client.log_batch(self._run, metrics=metrics, tags=tags or [])
