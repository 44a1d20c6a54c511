"""Weights & Biases: a run with figures over the axis ``step``. Needs `forkcast[wandb]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from forkcast.records import Index, StepStats
from forkcast_watch.trackers.base import Event, Held, TrackedRun, event_name, figures, named_event
from forkcast_wire.manifest_error import ManifestError

_EVENT: Final = "event_"
_BETWEEN: Final = "_"


class Wandb:
    """``wandb:PROJECT``; key, server and mode as WANDB_API_KEY, WANDB_BASE_URL and WANDB_MODE say. What
    is logged has its own axis, ``step``: W&B's own may only rise, and after a collapse steps come again.
    """

    def __init__(self, target: str, run: TrackedRun) -> None:
        """Raises ModuleNotFoundError without the extra, wandb.Error."""
        import wandb

        identity = f"forkcast-{run.uid}"
        root = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
        self._earlier = sorted(root.glob(f"offline-run-*-{identity}*"))
        self._run: Any = wandb.init(
            project=target or None,
            id=identity,
            name=run.name,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._summary: Mapping[str, Any] = dict(self._run.summary) if self._run.resumed else {}

    def held(self) -> Held:
        """See `Tracker.held`. Raises ManifestError where an earlier offline run is here: what the server
        has of it cannot be asked.
        """
        if self._earlier:
            raise ManifestError(
                str(self._earlier[-1]), "holds this run already", "`wandb sync` it, or delete it"
            )
        found = self._summary
        newest = (int(found["epoch"]), int(found["step"])) if "step" in found else None
        events = (name.removeprefix(_EVENT) for name in found if name.startswith(f"{_EVENT}e"))
        return Held(newest, frozenset(named_event(name, _BETWEEN) for name in events))

    def step(self, stats: StepStats, index: Index | None) -> None:
        """Its figures."""
        self._run.log({"step": stats.step, **figures(stats, index)})

    def event(self, event: Event) -> None:
        """Its tier over the steps, its cause in the run's summary."""
        tier = int(event.tier)
        self._run.log({"step": event.step, "event_tier": tier})
        text = f"since step {event.onset_step}: {event.cause}"
        self._run.summary[_EVENT + event_name(event, _BETWEEN)] = text

    def close(self) -> None:
        """Send the rest and end the run."""
        self._run.finish()
