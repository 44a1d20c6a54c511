"""The contract of a tracker: where the steps and events of a run are shown besides Forkcast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from forkcast.records import Index, StepStats
from forkcast_wire.statistics import COMPONENT, stats_row

#: Columns that name a row, or that no tracker has use for as a figure.
_NAMES = ("run_uid", "attempt", "rank", "step")
#: NaN stands for "not measured" in these.
_MAY_LACK = ("grad_norm", "grad_norm_clipped", "learning_rate")


class Event(Protocol):
    """An instability event as a tracker shows it.

    step, onset_step: when it was reported, and when it began. tier: 2 event, 3 branch, 4 stop.
    component: of the index, e.g. "loss". cause: one sentence.
    """

    @property
    def run_uid(self) -> str:
        """Of the watched run."""

    @property
    def epoch(self) -> int:
        """Lineage epoch, >= 0."""

    @property
    def step(self) -> int:
        """Optimizer step, >= 0."""

    @property
    def onset_step(self) -> int:
        """At most ``step``."""

    @property
    def tier(self) -> int:
        """2, 3 or 4."""

    @property
    def component(self) -> str:
        """Of the index."""

    @property
    def cause(self) -> str:
        """One sentence."""


#: What tells an event from others of its run: epoch, step, tier.
EventKey = tuple[int, int, int]


def event_key(event: Event) -> EventKey:
    """Of an event; the same event at a higher tier has another."""
    return event.epoch, event.step, int(event.tier)


def event_name(event: Event, between: str) -> str:
    """An event's key as a text, for places that know events by names; see `named_event`."""
    return f"e{event.epoch}{between}t{event.step}{between}tier{int(event.tier)}"


def named_event(name: str, between: str) -> EventKey:
    """The key that `event_name` made a name of. Raises ValueError."""
    epoch, step, tier = name.split(between)
    return int(epoch[1:]), int(step[1:]), int(tier.removeprefix("tier"))


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Whose steps they are. uid: the same after each restart."""

    uid: str
    name: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a place holds of a run: the newest (epoch, step), None without a step; and its events."""

    newest: tuple[int, int] | None = None
    events: frozenset[EventKey] = frozenset()


class Tracker(Protocol):
    """Writes steps and events to one place. Any method may raise or block; `Queued` keeps both from a
    training. Made from (target, run): the text after the colon of ``name:target``, and whose steps
    they are. A place that holds steps of the run already is continued.
    """

    def held(self) -> Held:
        """What the place holds of the run before anything is written: for who writes a history a second
        time. It may take as long as reading all of it. Raises ManifestError where it cannot be known.
        """

    def step(self, stats: StepStats, index: Index | None) -> None:
        """A step in the order of training; index: None where it was not judged. After a collapse or a
        restart steps come again, in a later epoch or attempt.
        """

    def event(self, event: Event) -> None:
        """An event, after its step. The same event comes again if its tier rises."""

    def close(self) -> None:
        """Write what is buffered and let go. Nothing is written afterwards."""


def index_columns(index: Index | None) -> dict[str, float]:
    """The columns that the index adds to a row; none where the step was not judged."""
    if index is None:
        return {}
    parts = {COMPONENT + name: value for name, value in index.components.items()}
    return {"index": index.index, "z": index.z, "tier": int(index.tier), **parts}


def figures(stats: StepStats, index: Index | None) -> dict[str, float]:
    """A step as named figures: the columns of docs/statistics.md. A list has one for each layer
    (``activation_sd/0``), a map one for each name (``group_grad_norms/mlp``). What was not measured is
    left out; a loss that is NaN or infinite stays.
    """
    found: dict[str, float] = {}
    for name, value in (stats_row(stats) | index_columns(index)).items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": float(part) for key, part in value.items()}
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}/{layer}": float(part) for layer, part in enumerate(value)}
        elif value is not None and name not in _NAMES:
            found[name] = float(value)
    for name in _MAY_LACK:
        if name in found and math.isnan(found[name]):
            del found[name]
    return found
