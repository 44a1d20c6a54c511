"""The shelf of trackers. One more is a file with a class as `base.Tracker` says, and a line here.

A tracker is named in one text: ``jsonl:stats.jsonl``, ``tensorboard:runs/x``, ``mlflow:EXPERIMENT``,
``wandb:PROJECT``. Its library is imported when it is made, and is an extra of the tracker's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from forkcast_watch.trackers.base import Event, Held, TrackedRun, Tracker
from forkcast_watch.trackers.jsonl import Jsonl
from forkcast_watch.trackers.mlflow import Mlflow
from forkcast_watch.trackers.queued import Queued
from forkcast_watch.trackers.tensorboard import TensorBoard
from forkcast_watch.trackers.wandb import Wandb
from forkcast_wire.echo import first_line
from forkcast_wire.manifest_error import ManifestError

__all__ = ["TRACKERS", "Event", "Held", "Queued", "TrackedRun", "Tracker", "named", "open_tracker"]

#: By name: what makes a tracker from (target, run).
TRACKERS: Final[Mapping[str, Callable[[str, TrackedRun], Tracker]]] = {
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}


def named(spec: str, field: str = "trackers") -> tuple[str, str]:
    """(name, target) of a text. Raises ManifestError for an unknown name; nothing is opened."""
    name, colon, target = spec.partition(":")
    if not colon or name not in TRACKERS:
        known = ", ".join(f"{one}:" for one in TRACKERS)
        raise ManifestError(field, f"{spec!r} names no tracker", f"begin it with one of {known}")
    return name, target


def open_tracker(spec: str, run: TrackedRun, field: str = "trackers") -> Tracker:
    """The tracker that a text names; field: what the user gave it as, for the error.

    Raises ManifestError naming the remedy: an unknown name, an extra that is not installed, a place that
    cannot be used.
    """
    name, target = named(spec, field)
    try:
        return TRACKERS[name](target, run)
    except ModuleNotFoundError as error:
        missing = f"{spec!r} needs {error.name}, which is not installed"
        raise ManifestError(field, missing, f"pip install 'forkcast[{name}]'") from None
    except ManifestError:
        raise
    except Exception as error:  # noqa: BLE001  its library may raise anything
        what = first_line(error)
        remedy = "change the target, or leave the tracker out"
        raise ManifestError(field, f"{spec!r} cannot be opened: {what}", remedy) from None
