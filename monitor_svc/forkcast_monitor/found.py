"""The last events of a run, for a client that follows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from forkcast.records import Event, Tier, TriggerRule
from forkcast_monitor.detector import Reading
from forkcast_wire.run_events import event_of

#: Of a run: what it finds between two questions of a watcher, which asks every second.
KEPT: Final = 64


class Found(NamedTuple):
    """An event, and the attempt of the row that it was found at."""

    attempt: int
    event: Event

    @property
    def place(self) -> tuple[int, int, int]:
        """(epoch, attempt, step) of the row."""
        return self.event.epoch, self.attempt, self.event.step


def event_in(reading: Reading) -> Event | None:
    """What a reading tells of: its event, or a trigger that comes without one. A calm stretch is none."""
    trigger = reading.trigger
    if reading.event is None and trigger is not None and trigger.rule is not TriggerRule.CALM:
        return event_of(trigger)
    return reading.event


class LastEvents:
    """In order of their places, which number them: of what is found a second time, by a replay, nothing is
    added. A reader needs no lock: what is kept is replaced, never changed.
    """

    def __init__(self) -> None:
        self._kept: tuple[Found, ...] = ()

    def add(self, found: Iterable[Found]) -> None:
        """Events in order."""
        for one in found:
            if not self._kept or one.place > self._kept[-1].place:
                self._kept = (*self._kept, one)[-KEPT:]

    def since(self, place: tuple[int, int, int]) -> tuple[list[Found], bool]:
        """Those of that row and later ones, and whether earlier ones of these may be missing."""
        kept = self._kept
        return [one for one in kept if one.place >= place], (
            len(kept) == KEPT and kept[0].place >= place
        )

    def state(self) -> list[list[Any]]:
        """JSON-ready."""
        return [
            [
                one.event.epoch,
                one.attempt,
                one.event.step,
                one.event.onset_step,
                int(one.event.tier),
                one.event.component,
                one.event.cause,
            ]
            for one in self._kept
        ]


def restored(run_uid: str, state: Iterable[Iterable[Any]]) -> list[Found]:
    """The events of a `LastEvents.state`."""
    return [
        Found(
            attempt,
            Event(
                run_uid=run_uid,
                epoch=epoch,
                step=step,
                onset_step=onset,
                tier=Tier(tier),
                component=component,
                cause=cause,
            ),
        )
        for epoch, attempt, step, onset, tier, component, cause in state
    ]
