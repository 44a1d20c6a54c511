"""Ranks that no longer advance: who they are, and their end, so that the run is started again.

Time counts only while the watcher itself runs: if a whole machine was asleep, nobody has hung.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from forkcast_wire import last_words
from forkcast_wire.beats import Beat, Pulse, read
from forkcast_wire.last_words import Ended

_log = structlog.get_logger()
#: Between two looks; more than a few of them never count as watched.
LOOK_SECONDS: Final = 1.0
_MOST_BETWEEN_LOOKS: Final = 5.0
#: A stuck process that is asked for its stack gets so long to write it.
_DUMP_SECONDS: Final = 1.0
#: Exit code of a process that ends itself: another start may succeed.
_AGAIN: Final = 1
_DUMPS: Final = signal.SIGUSR1


@dataclass(frozen=True, slots=True)
class Sighting:
    """A rank's last beat, for how many seconds it has been watched without another, and whether its
    process is stopped (SIGSTOP).
    """

    beat: Beat
    still: float
    stopped: bool

    @property
    def over(self) -> bool:
        """Whether it has been still for too long. A stopped process advances in no phase."""
        patience = 1.0 if self.stopped else self.beat.phase.patience
        limit = self.beat.limit
        return limit > 0 and patience is not None and self.still > limit * patience


#: So many ends in a row without a step between them are no accident: the run is not started again.
MOST_IN_A_ROW: Final = 3


def in_a_row(before: int, before_step: int, step: int, reason: Ended) -> int:
    """How many ends in a row were because it hung, this one counted: a run that has come further since
    begins to count anew. before, before_step: the count and the step at the former end.
    """
    if reason is not Ended.HUNG:
        return 0
    return before + 1 if before and step <= before_step else 1


Sightings = Mapping[int, Sighting]


def seen(
    before: Sightings, beats: Iterable[Beat], stopped: Iterable[int], elapsed: float
) -> Sightings:
    """The sightings by rank after a look ``elapsed`` seconds later, of which no more count than a
    watcher that runs may take. stopped: process ids.
    """
    watched = min(elapsed, _MOST_BETWEEN_LOOKS)
    halted = frozenset(stopped)
    found = {}
    for beat in beats:
        former = before.get(beat.rank)
        still = former.still + watched if former is not None and former.beat == beat else 0.0
        found[beat.rank] = Sighting(beat, still, beat.pid in halted)
    return found


def hung(sightings: Sightings) -> list[Sighting]:
    """The ranks that hold up the run, by rank; none if all advance. If processes are stopped it is
    they: the others may wait for them.
    """
    over = [one for _, one in sorted(sightings.items()) if one.over]
    stopped = [one for _, one in sorted(sightings.items()) if one.stopped]
    return (stopped or over) if over else []


class Watch:
    """Looks at the beats of some processes in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sightings: Sightings = {}
        self._looked = time.monotonic()

    def look(self, pids: Sequence[int]) -> list[Sighting]:
        """The ranks among these processes that hold up the run now; they are watched anew from then
        on, so that each is told once while it is being ended.
        """
        now = time.monotonic()
        elapsed, self._looked = now - self._looked, now
        beats = [one for one in read(self._folder) if one.pid in pids]
        stopped = [one.pid for one in beats if _stopped(one.pid)]
        self._sightings = seen(self._sightings, beats, stopped, elapsed)
        found = hung(self._sightings)
        if found:
            self._sightings = {}
        return found


def words(found: Sequence[Sighting]) -> str:
    """What hung, and what to do about it, in one line."""
    beat, still = found[0].beat, found[0].still
    at = f"rank {beat.rank} at step {beat.step} ({beat.phase.name.lower()})"
    if found[0].stopped:
        return f"{at} was stopped for {still:.0f} s"
    return (
        f"{at} showed no progress for {still:.0f} s; the log says where it is stuck; if a step takes "
        f"so long, raise spec.training.hangSeconds (in force: {beat.limit:.0f} s)"
    )


def tell(found: Iterable[Sighting]) -> None:
    """Name them in the log."""
    for one in found:
        beat = one.beat
        _log.error(
            "trainer.hung",
            rank=beat.rank,
            step=beat.step,
            phase=beat.phase.name.lower(),
            seconds=round(one.still, 1),
            stopped=one.stopped,
            pid=beat.pid,
        )


def end(found: Sequence[Sighting], pids: Sequence[int]) -> None:
    """Name the hung ranks, have them write where they are stuck, and kill all these processes: a
    stopped one hears nothing else, and one that waits for a rank that is gone may never end.
    """
    tell(found)
    if asked := [one.beat.pid for one in found if not one.stopped]:
        _send(asked, _DUMPS)
        time.sleep(_DUMP_SECONDS)
    _send(pids, signal.SIGKILL)


def dump_when_asked() -> None:
    """Write all threads' stacks to stderr when `end` asks; before the first beat, or it kills."""
    faulthandler.register(_DUMPS, file=sys.__stderr__ or 2, all_threads=True)


def watch_children(folder: Path, children: Callable[[], Sequence[int]]) -> None:
    """End these processes, from a thread, if one of them hangs. They are named anew at each look."""

    def watch() -> None:
        watching = Watch(folder)
        while True:
            time.sleep(LOOK_SECONDS)
            if found := watching.look(pids := children()):
                last_words.say(Ended.HUNG, words(found))
                end(found, pids)

    threading.Thread(target=watch, name="hang-watch", daemon=True).start()


def watch_myself(pulse: Pulse) -> None:
    """End this process, with 1, if its training thread hangs. For one that nobody else watches: a
    process that is stopped as a whole is not seen.
    """

    def watch() -> None:
        sightings: Sightings = {}
        looked = time.monotonic()
        while True:
            # should no thread of Python come to its turn, the interpreter itself is stuck
            beat = pulse.seen()
            if beat.limit and beat.phase.patience is not None:
                longest = beat.limit * beat.phase.patience + _MOST_BETWEEN_LOOKS
                faulthandler.dump_traceback_later(longest, exit=True, file=sys.__stderr__ or 2)
            else:
                faulthandler.cancel_dump_traceback_later()
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            elapsed, looked = now - looked, now
            sightings = seen(sightings, [pulse.seen()], (), elapsed)
            if found := hung(sightings):
                tell(found)
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                last_words.say(Ended.HUNG, words(found))
                os._exit(_AGAIN)

    threading.Thread(target=watch, name="hang-watch", daemon=True).start()


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal; a debugger's stop is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] == "T"
