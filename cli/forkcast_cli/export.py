"""`forkcast export`: a run's steps and events into a tracker, once or as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

from forkcast.records import Index, Tier
from forkcast_watch.trackers import TrackedRun, Tracker, open_tracker
from forkcast_watch.trackers.base import Held, event_key
from forkcast_wire.echo import first_line
from forkcast_wire.loaded_run import LoadedRun
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.run_events import RunEvent
from forkcast_wire.run_steps import Row
from forkcast_wire.statistics import components_of, row_to_stats
from forkcast_wire.store import StoreRefused, StoreUnavailable

_POLL_SECONDS: Final = 2.0
#: A whole history is read each time; reading takes at most this share of the time.
_SHARE: Final = 0.1


@dataclass
class Target:
    """One tracker of an export. steps, events: written so far."""

    spec: str
    tracker: Tracker
    held: Held
    steps: int = 0
    events: int = 0
    _failed: bool = field(default=False)

    @classmethod
    def of(cls, spec: str, run: LoadedRun) -> Target:
        """Raises ManifestError."""
        tracker = open_tracker(spec, TrackedRun(run.run_uid, run.name), "--to")
        try:
            return cls(spec, tracker, tracker.held())
        except BaseException:
            tracker.close()
            raise

    def write(self, run: LoadedRun) -> None:
        """What the place does not hold yet. Raises ManifestError if the tracker fails."""
        for one in missing(run, self.held):
            try:
                self._write(one)
            except Exception as error:  # noqa: BLE001  its library may raise anything
                self._failed = True
                raise self._error(error) from None

    def _write(self, one: Row | RunEvent) -> None:
        if isinstance(one, RunEvent):
            self.tracker.event(one)
            self.events += 1
            self.held = Held(self.held.newest, self.held.events | {event_key(one)})
        else:
            self.tracker.step(row_to_stats(one), index_of(one))
            self.steps += 1
            self.held = Held((one["epoch"], one["step"]), self.held.events)

    def close(self) -> None:
        """Raises ManifestError if what was buffered cannot be written, unless writing failed before."""
        try:
            self.tracker.close()
        except Exception as error:  # noqa: BLE001  as above
            if not self._failed:
                raise self._error(error) from None

    def _error(self, error: Exception) -> ManifestError:
        what = first_line(error)
        rule = f"{self.spec!r} failed after {self.steps} steps: {what}"
        return ManifestError("--to", rule, "run it again: it goes on from there")


def missing(run: LoadedRun, held: Held) -> Iterator[Row | RunEvent]:
    """Of the run as it stands, and of its events, those that a place does not hold, in order; an event
    comes after its step.
    """
    rows: Iterable[Row] = (row for row in run.rows if not run.abandoned(row))
    found: list[tuple[tuple[int, int, int], Row | RunEvent]] = [
        ((row["epoch"], row["step"], 0), row)
        for row in rows
        if held.newest is None or (row["epoch"], row["step"]) > held.newest
    ]
    found += [
        ((one.epoch, one.step, 1), one)
        for one in run.event_records
        if event_key(one) not in held.events
    ]
    for _, one in sorted(found, key=lambda placed: placed[0]):
        yield one


def index_of(row: Row) -> Index | None:
    """The index in a row of a history; None where no monitor has judged it."""
    if row.get("z") is None:
        return None
    return Index(
        step=row["step"],
        epoch=row["epoch"],
        components=components_of(row),
        index=row["index"],
        z=row["z"],
        ready=True,
        tier=Tier(row.get("tier") or 0),
    )


def export(
    load: Callable[[], LoadedRun],
    specs: Iterable[str],
    *,
    follow: bool,
    tell: Callable[[str], None],
) -> list[Target]:
    """Write what each tracker lacks; with ``follow`` until the run has ended, or Ctrl-C.

    tell: gets one line when a store that is followed goes away, and when it is back. Raises
    ManifestError, StoreError, HistoryError.
    """
    targets: list[Target] = []
    with suppress(KeyboardInterrupt), ExitStack() as opened:
        run = load()
        for spec in specs:
            targets.append(Target.of(spec, run))
            opened.callback(targets[-1].close)
        for target in targets:
            target.write(run)
        if follow and not run.ended:
            _follow(load, targets, tell)
    return targets


def _follow(
    load: Callable[[], LoadedRun], targets: Iterable[Target], tell: Callable[[str], None]
) -> None:
    away, took = False, 0.0
    while True:
        time.sleep(max(_POLL_SECONDS, took / _SHARE))
        began = time.monotonic()
        try:
            run = load()
            rows = run.rows
        except StoreRefused:
            raise
        except StoreUnavailable as error:
            if not away:
                tell(f"{error}; waiting for it")
            away = True
            continue
        if away:
            tell(f"the store answers again; {len(rows)} steps are on record")
        away, took = False, time.monotonic() - began
        for target in targets:
            target.write(run)
        if run.ended:
            return
