"""The contract of a tracker: where the steps and events of a watched run are shown besides Forkcast."""

from __future__ import annotations

from typing import Protocol

from forkcast.records import Index, StepStats


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


class Tracker(Protocol):
    """Writes steps and events to one place. Any method may raise; `Shielded` keeps that from a run."""

    def step(self, stats: StepStats, index: Index | None) -> None:
        """A step in the order of training; index: None where it was not judged."""

    def event(self, event: Event) -> None:
        """An event, after its step. The same event comes again if its tier rises."""

    def close(self) -> None:
        """Write what is buffered and let go. Nothing is written afterwards."""
